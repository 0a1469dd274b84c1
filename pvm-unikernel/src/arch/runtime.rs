//! What the precompiled `core` and `alloc` call by name on this target.
//!
//! Assembly, because a loop in Rust may be compiled into a call of the very function it
//! implements. `rep movsb` and `rep stosb` are the fastest general choice on every CPU
//! with ERMS, which Xen's supported hosts all have.

use core::arch::global_asm;

global_asm!(
    r#"
.section .text.memory, "ax"
.global memcpy
memcpy:
 mov rax, rdi
 mov rcx, rdx
 rep movsb
 ret

.global memmove
memmove:
 mov rax, rdi
 mov r8, rdi
 sub r8, rsi
 cmp r8, rdx
 jb 1f
 mov rcx, rdx
 rep movsb
 ret
1: /* dest overlaps the end of src: from the top down, by words where possible */
 lea rdi, [rdi + rdx - 8]
 lea rsi, [rsi + rdx - 8]
 mov rcx, rdx
 shr rcx, 3
 std
 rep movsq
 add rdi, 7
 add rsi, 7
 mov rcx, rdx
 and rcx, 7
 rep movsb
 cld
 ret

.global memset
memset:
 mov r8, rdi
 mov eax, esi
 mov rcx, rdx
 rep stosb
 mov rax, r8
 ret

.global memcmp
.global bcmp
memcmp:
bcmp:
 xor eax, eax
1: cmp rdx, 8
 jb 2f
 mov rcx, [rdi]
 cmp rcx, [rsi]
 jne 2f
 add rdi, 8
 add rsi, 8
 sub rdx, 8
 jmp 1b
2: test rdx, rdx
 je 3f
 movzx eax, byte ptr [rdi]
 movzx ecx, byte ptr [rsi]
 sub eax, ecx
 jne 3f
 inc rdi
 inc rsi
 dec rdx
 jmp 2b
3: ret

.global strlen
strlen:
 xor eax, eax
1: cmp byte ptr [rdi + rax], 0
 je 2f
 inc rax
 jmp 1b
2: ret

/* Named by the precompiled crates, never called: panics abort. */
.global rust_eh_personality
rust_eh_personality:
.global _Unwind_Resume
_Unwind_Resume:
 ud2
"#
);
