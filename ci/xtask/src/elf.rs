//! Whether an ELF file is what Xen can boot without any loader's help.

use anyhow::{Context, Result, bail, ensure};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_TLS: u32 = 7;
const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_DYNAMIC: u32 = 6;
const SHT_REL: u32 = 9;
const SHT_DYNSYM: u32 = 11;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;

/// Static, at fixed addresses, without interpreter, dynamic section, thread-local
/// storage, relocations or undefined symbols, and with Xen's notes.
pub fn check_freestanding(file: &[u8]) -> Result<()> {
    ensure!(
        file.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    ensure!(
        u16_at(file, 16)? == ET_EXEC,
        "not an executable at fixed addresses"
    );
    ensure!(u16_at(file, 18)? == EM_X86_64, "not for x86-64");
    let (phoff, shoff) = (usize_at(file, 32)?, usize_at(file, 40)?);
    let (phentsize, phnum) = (u16_at(file, 54)?, u16_at(file, 56)?);
    for index in 0..usize::from(phnum) {
        match u32_at(file, phoff + index * usize::from(phentsize))? {
            PT_DYNAMIC => bail!("it has a dynamic section"),
            PT_INTERP => bail!("it has an interpreter"),
            PT_TLS => bail!("it has thread-local storage"),
            _ => {}
        }
    }
    let (shentsize, shnum) = (u16_at(file, 58)?, u16_at(file, 60)?);
    ensure!(
        shnum > 0,
        "it has no section table, so its symbols cannot be checked"
    );
    let mut has_symbols = false;
    for index in 0..usize::from(shnum) {
        let header = shoff + index * usize::from(shentsize);
        let (offset, size) = (usize_at(file, header + 24)?, usize_at(file, header + 32)?);
        match u32_at(file, header + 4)? {
            SHT_DYNAMIC | SHT_DYNSYM => bail!("it has dynamic symbols"),
            SHT_RELA | SHT_REL if size > 0 => bail!("it has relocations left"),
            SHT_SYMTAB => {
                has_symbols = true;
                let link = shoff + usize_at_u32(file, header + 40)? * usize::from(shentsize);
                let strings = usize_at(file, link + 24)?;
                check_symbols(file, offset, size, strings)?;
            }
            _ => {}
        }
    }
    ensure!(
        has_symbols,
        "it is stripped, so its symbols cannot be checked"
    );
    ensure!(
        file.windows(4).any(|bytes| bytes == b"Xen\0"),
        "it has no ELF notes for Xen"
    );
    Ok(())
}

/// No symbol but the first (which is null) is undefined.
fn check_symbols(file: &[u8], offset: usize, size: usize, strings: usize) -> Result<()> {
    const ENTRY: usize = 24;
    for index in 1..size / ENTRY {
        let symbol = offset + index * ENTRY;
        if u16_at(file, symbol + 6)? == 0 {
            let name = strings + usize_at_u32(file, symbol)?;
            let rest = file
                .get(name..)
                .context("a symbol's name is outside the file")?;
            let end = rest
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(rest.len());
            let name = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
            bail!("{name} is undefined");
        }
    }
    Ok(())
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N]> {
    file.get(at..at + N)
        .and_then(|slice| slice.try_into().ok())
        .with_context(|| format!("cut before offset {at}"))
}

fn u16_at(file: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(bytes(file, at)?))
}

fn u32_at(file: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes(file, at)?))
}

fn usize_at_u32(file: &[u8], at: usize) -> Result<usize> {
    Ok(usize::try_from(u32_at(file, at)?)?)
}

fn usize_at(file: &[u8], at: usize) -> Result<usize> {
    let value = u64::from_le_bytes(bytes(file, at)?);
    // Sums of a few of these must not overflow; .bss may well be larger than the file.
    ensure!(value < 1 << 48, "an offset or size is absurd");
    Ok(usize::try_from(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_program_is_refused() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(check_freestanding(&own).is_err());
    }

    #[test]
    fn any_cut_of_a_program_is_refused_without_a_panic() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in (0..256).chain([4096, 65536]) {
            assert!(check_freestanding(own.get(..length).unwrap_or(&own)).is_err());
        }
    }
}
