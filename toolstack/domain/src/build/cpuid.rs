//! What CPUID tells a PVH guest of its topology.
//!
//! After `xc_cpuid_apply_policy` (tools/libs/guest/xg_cpuid_x86.c): an APIC id is
//! twice the vCPU's number, so everything that counts ids is doubled.

use xen_abi::domctl::CpuidLeaf;

/// EBX of leaf 0: the first four letters of the vendor.
const INTEL: u32 = u32::from_le_bytes(*b"Genu");
const AMD: u32 = u32::from_le_bytes(*b"Auth");
const HYGON: u32 = u32::from_le_bytes(*b"Hygo");

/// Edits the default policy of an HVM domain.
pub(super) fn edit(leaves: &mut [CpuidLeaf]) {
    let vendor = leaves
        .iter()
        .find(|leaf| leaf.leaf == 0)
        .map_or(0, |leaf| leaf.b);
    for leaf in leaves {
        match leaf.leaf {
            1 => {
                let lppp = leaf.b >> 16 & 0xff;
                let lppp = match lppp {
                    0 => 2,
                    1..=0x7f => lppp * 2,
                    _ => lppp,
                };
                leaf.b = leaf.b & !(0xff << 16) | lppp << 16;
                leaf.c &= !(1 << 5); // vmx
                leaf.d |= 1 << 28 | 1 << 6; // htt, pae
            }
            // Caches; type 0 ends the list.
            4 if vendor == INTEL && leaf.a & 0x1f != 0 => {
                let cores = (leaf.a >> 26) << 1 | 1;
                leaf.a = leaf.a & 0x3fff & !(0x3f << 26) | (cores & 0x3f) << 26;
            }
            0x8000_0001 => {
                leaf.c &= !(1 << 1 | 1 << 2); // cmp_legacy, svm
            }
            // itsc: a guest that may migrate cannot count on it.
            0x8000_0007 => leaf.d &= !(1 << 8),
            0x8000_0008 if vendor == AMD || vendor == HYGON => {
                let nc = leaf.c & 0xff;
                let size = leaf.c >> 12 & 0xf;
                if nc < 0x7f {
                    let size = if size != 0 && size < 7 {
                        size + 1
                    } else {
                        size
                    };
                    leaf.c = leaf.c & !0xf0ff | size << 12 | nc << 1 | 1;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(leaf: u32, a: u32, b: u32, c: u32, d: u32) -> CpuidLeaf {
        CpuidLeaf {
            leaf,
            subleaf: 0,
            a,
            b,
            c,
            d,
        }
    }

    #[test]
    fn logical_processors_double_without_overflow() {
        for (before, after) in [
            (0, 2),
            (1, 2),
            (64, 128),
            (127, 254),
            (128, 128),
            (255, 255),
        ] {
            let mut leaves = [leaf(1, 0, 0xaa00_bbcc | before << 16, 1 << 5, 0)];
            edit(&mut leaves);
            assert_eq!(leaves[0].b, 0xaa00_bbcc | after << 16);
            assert_eq!(leaves[0].c, 0);
            assert_eq!(leaves[0].d, 1 << 28 | 1 << 6);
        }
    }

    #[test]
    fn intel_caches_get_twice_the_cores_and_no_threads() {
        // 4 cores (3), 2 threads share (1), type 1, level 1.
        let before = 3 << 26 | 1 << 14 | 1 << 5 | 1;
        let mut leaves = [
            leaf(0, 0, INTEL, 0, 0),
            leaf(4, before, 0, 0, 0),
            leaf(4, 0, 0, 0, 0),
        ];
        edit(&mut leaves);
        assert_eq!(leaves[1].a, 7 << 26 | 1 << 5 | 1);
        assert_eq!(leaves[2].a, 0);
    }

    #[test]
    fn amd_core_count_doubles_and_the_id_grows_by_a_bit() {
        let mut leaves = [
            leaf(0, 0, AMD, 0, 0),
            leaf(0x8000_0008, 0, 0, 0x0000_3007, 0),
            leaf(0x8000_0001, 0, 0, 0b111, 0),
        ];
        edit(&mut leaves);
        assert_eq!(leaves[1].c, 0x0000_400f);
        assert_eq!(leaves[2].c, 1);
        // An id size of 0 means something else and stays.
        let mut leaves = [leaf(0, 0, AMD, 0, 0), leaf(0x8000_0008, 0, 0, 3, 0)];
        edit(&mut leaves);
        assert_eq!(leaves[1].c, 7);
    }
}
