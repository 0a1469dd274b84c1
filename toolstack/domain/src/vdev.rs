//! Numbers of virtual disks: docs/man/xen-vbd-interface.7.pandoc of Xen.

/// The device number that stands for a `vdev=` name: `xvda`, `xvdb3`, `sda1`, `hdc`,
/// `d2p1`, or a number itself. `None`: it is no such name.
pub fn device_number(vdev: &str) -> Option<u32> {
    if let Some((disk, partition)) =
        numbered(vdev).or_else(|| lettered(vdev, "xvd", (1 << 20) - 1, 255))
    {
        return Some(if disk <= 15 && partition <= 15 {
            202 << 8 | disk << 4 | partition
        } else {
            1 << 28 | disk << 8 | partition
        });
    }
    if let Some((disk, partition)) = lettered(vdev, "hd", 3, 63) {
        let major = if disk < 2 { 3 } else { 22 };
        return Some(major << 8 | (disk & 1) << 6 | partition);
    }
    if let Some((disk, partition)) = lettered(vdev, "sd", 15, 15) {
        return Some(8 << 8 | disk << 4 | partition);
    }
    decimal(vdev).filter(|&number| number <= u32::MAX / 2)
}

/// `d2p1`
fn numbered(vdev: &str) -> Option<(u32, u32)> {
    let (disk, partition) = vdev.strip_prefix('d')?.split_once('p')?;
    let (disk, partition) = (decimal(disk)?, decimal(partition)?);
    (disk < 1 << 20 && partition < 256).then_some((disk, partition))
}

/// `xvda`, `xvdz`, `xvdaa`, `xvdb12`: letters count in base 26 without a zero.
fn lettered(vdev: &str, prefix: &str, most_disk: u32, most_partition: u32) -> Option<(u32, u32)> {
    let rest = vdev.strip_prefix(prefix)?;
    let letters = rest.len()
        - rest
            .trim_start_matches(|c: char| c.is_ascii_lowercase())
            .len();
    let (letters, digits) = rest.split_at(letters);
    if letters.is_empty() || digits.starts_with('0') {
        return None;
    }
    let mut disk: u32 = 0;
    for letter in letters.bytes() {
        disk = disk
            .checked_mul(26)?
            .checked_add(u32::from(letter - b'a') + 1)?;
    }
    let disk = disk - 1;
    let partition = if digits.is_empty() {
        0
    } else {
        decimal(digits)?
    };
    (disk <= most_disk && partition <= most_partition).then_some((disk, partition))
}

/// Digits only: no sign, no blank.
fn decimal(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_numbers_of_the_interface_document() {
        for (vdev, number) in [
            ("xvda", 51712),
            ("xvdb", 51728),
            ("xvda1", 51713),
            ("xvdp15", 202 << 8 | 15 << 4 | 15),
            // The 17th disk, and the 16th partition, need the extended form.
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvda16", 1 << 28 | 16),
            ("xvdz", 1 << 28 | 25 << 8),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("d0p0", 51712),
            ("d26p3", 1 << 28 | 26 << 8 | 3),
            ("hda", 768),
            ("hdb2", 3 << 8 | 64 | 2),
            ("hdc", 5632),
            ("sda", 2048),
            ("sdb1", 2065),
            ("51712", 51712),
        ] {
            assert_eq!(device_number(vdev), Some(number), "{vdev}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for vdev in [
            "",
            "xvd",
            "xvd1",
            "xvda0",
            "xvda01",
            "xvda256",
            "xvdA",
            "hde",
            "sdq",
            "sda16",
            "d1p256",
            "d1",
            "vda",
            "+1",
            "xvda 1",
            "xvdzzzzzzzzzzzzz",
            "4294967296",
        ] {
            assert_eq!(device_number(vdev), None, "{vdev}");
        }
    }
}
