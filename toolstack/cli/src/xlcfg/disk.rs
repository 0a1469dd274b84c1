//! `disk=` entries, as xl-disk-configuration(5) describes them.
//!
//! `target, format, vdev, access` by position or as `key=value`; `target=` takes the rest
//! of the line. Here the target is the name of a volume of the host, with or without
//! `volume:` before it.

use toolstack_domain::vdev::device_number;
use toolstack_rpc::server::check_name;

/// One disk, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XlDisk {
    /// Name of the volume.
    pub volume: String,
    /// `xvda`, `xvdb1`, ...
    pub vdev: String,
    /// Whether the guest may write.
    pub writable: bool,
}

/// Longest volume name: what a GPT partition entry holds.
const MAX_VOLUME: usize = 36;

/// Parses one entry. What is read but means nothing here is added to `ignored`.
pub fn parse(spec: &str, ignored: &mut Vec<String>) -> Result<XlDisk, String> {
    let mut disk = Draft::default();
    let mut rest = spec.trim();
    while !rest.is_empty() {
        if let Some(target) = rest.strip_prefix("target=") {
            disk.set_target(target.trim_end_matches(','))?;
            break;
        }
        let (word, after) = rest.split_once(',').unwrap_or((rest, ""));
        disk.word(word.trim(), ignored)?;
        rest = after.trim_start();
    }
    disk.finish(spec, ignored)
}

#[derive(Default)]
struct Draft {
    target: Option<String>,
    format: Option<String>,
    vdev: Option<String>,
    writable: Option<bool>,
    cdrom: bool,
}

impl Draft {
    fn word(&mut self, word: &str, ignored: &mut Vec<String>) -> Result<(), String> {
        let Some((key, value)) = word.split_once('=') else {
            return self.flag_or_position(word, ignored);
        };
        match key {
            "format" => self.set_format(value),
            "vdev" => self.set_vdev(value),
            "access" => self.set_access(value),
            "devtype" => match value {
                "disk" => Ok(()),
                "cdrom" => {
                    self.cdrom = true;
                    Ok(())
                }
                _ => Err(format!("devtype={value} is neither disk nor cdrom")),
            },
            "specification" if value != "xen" => Err(format!(
                "specification={value} is not supported; only xen is"
            )),
            "specification" => Ok(()),
            "backend" | "backendtype" | "script" | "grant_usage" | "colo-host" | "colo-port"
            | "colo-export" | "active-disk" | "hidden-disk" => {
                ignored.push(key.to_owned());
                Ok(())
            }
            _ => Err(format!("unknown parameter '{}'", key.escape_debug())),
        }
    }

    fn flag_or_position(&mut self, word: &str, ignored: &mut Vec<String>) -> Result<(), String> {
        match word {
            "cdrom" => self.cdrom = true,
            "direct-io-safe" | "discard" | "no-discard" | "trusted" | "untrusted" | "colo"
            | "no-colo" => ignored.push(word.to_owned()),
            _ if self.target.is_none() => return self.set_target(word),
            _ if self.format.is_none() => return self.set_format(word),
            _ if self.vdev.is_none() => {
                // xm's old way to say that it is a CD-ROM: xvdc:cdrom
                let (vdev, devtype) = word.rsplit_once(':').unwrap_or((word, "disk"));
                return match devtype {
                    "disk" | "cdrom" => {
                        self.cdrom |= devtype == "cdrom";
                        self.set_vdev(vdev)
                    }
                    _ => Err(format!("'{}' is no device type", devtype.escape_debug())),
                };
            }
            _ if self.writable.is_none() => return self.set_access(word),
            _ => {
                return Err(format!(
                    "'{}' is one parameter too many",
                    word.escape_debug()
                ));
            }
        }
        Ok(())
    }

    fn set_target(&mut self, text: &str) -> Result<(), String> {
        let mut name = text.trim();
        // xm's prefixes for the format and the driver take the place of `format`.
        for prefix in ["raw:", "phy:", "file:", "aio:", "tap:", "tap2:", "tapdisk:"] {
            if let Some(rest) = name.strip_prefix(prefix) {
                name = rest;
                self.set_format("raw")?;
            }
        }
        for prefix in ["qcow:", "qcow2:", "vhd:"] {
            if name.starts_with(prefix) {
                self.set_format(prefix.trim_end_matches(':'))?;
            }
        }
        let name = name.strip_prefix("volume:").unwrap_or(name);
        if name.starts_with('/') || name.starts_with("./") || name.starts_with("../") {
            return Err(format!(
                "'{}' is a path; the target is the name of a volume on the host \
                 (make one with: closer volume import)",
                name.escape_debug()
            ));
        }
        check_name(name).map_err(|error| error.to_string())?;
        if name.len() > MAX_VOLUME {
            return Err(format!(
                "the volume's name {name} is longer than {MAX_VOLUME}"
            ));
        }
        once(&mut self.target, name, "target")
    }

    fn set_format(&mut self, text: &str) -> Result<(), String> {
        match text {
            "" | "raw" => once(&mut self.format, "raw", "format"),
            "qcow" | "qcow2" | "vhd" | "qed" => Err(format!(
                "format={text} is not supported; import the image as a volume, it is raw then"
            )),
            "empty" => Err("an empty drive is not supported".into()),
            _ => Err(format!("'{}' is no disk format", text.escape_debug())),
        }
    }

    fn set_vdev(&mut self, text: &str) -> Result<(), String> {
        if device_number(text).is_none() {
            return Err(format!(
                "vdev '{}' is no virtual disk (xvda, xvdb, ... xvda1, ...)",
                text.escape_debug()
            ));
        }
        once(&mut self.vdev, text, "vdev")
    }

    fn set_access(&mut self, text: &str) -> Result<(), String> {
        let writable = match text {
            "r" | "ro" => false,
            "w" | "rw" | "" => true,
            _ => {
                return Err(format!(
                    "access '{}' is none of r, ro, w, rw",
                    text.escape_debug()
                ));
            }
        };
        if self.writable.is_some() {
            return Err("access is given twice".into());
        }
        self.writable = Some(writable);
        Ok(())
    }

    fn finish(self, spec: &str, ignored: &mut Vec<String>) -> Result<XlDisk, String> {
        let volume = self
            .target
            .ok_or_else(|| format!("'{}' names no volume", spec.escape_debug()))?;
        let vdev = self
            .vdev
            .ok_or_else(|| format!("the disk on volume {volume} has no vdev (xvda, ...)"))?;
        if self.cdrom {
            ignored.push("cdrom (it is a disk that is only read)".into());
        }
        Ok(XlDisk {
            volume,
            vdev,
            writable: !self.cdrom && self.writable.unwrap_or(true),
        })
    }
}

/// Sets what may be set only once.
fn once(slot: &mut Option<String>, value: &str, what: &str) -> Result<(), String> {
    match slot {
        Some(old) if old != value => Err(format!("{what} is given twice")),
        _ => {
            *slot = Some(value.to_owned());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(volume: &str, vdev: &str, writable: bool) -> XlDisk {
        XlDisk {
            volume: volume.into(),
            vdev: vdev.into(),
            writable,
        }
    }

    #[test]
    fn positions_and_keys_say_the_same() {
        for spec in [
            "vol1,raw,xvda,rw",
            "vol1,,xvda,w",
            "vol1, raw, xvda",
            "vol1,,xvda",
            "volume:vol1,,xvda,",
            "raw:vol1,xvda,w",
            "phy:vol1,xvda,w",
            "vdev=xvda,access=rw,target=vol1",
            "format=raw, vdev=xvda, access=rw, target=volume:vol1",
            "vol1,vdev=xvda,format=raw",
            "access=rw,vol1,raw,xvda",
        ] {
            let mut ignored = Vec::new();
            assert_eq!(
                parse(spec, &mut ignored),
                Ok(disk("vol1", "xvda", true)),
                "{spec}"
            );
            assert!(ignored.is_empty(), "{spec}: {ignored:?}");
        }
    }

    #[test]
    fn read_only_and_cdrom_disks_are_not_writable() {
        for spec in ["v,,xvdb,r", "v,,xvdb,ro", "vdev=xvdb,access=ro,target=v"] {
            assert_eq!(
                parse(spec, &mut vec![]),
                Ok(disk("v", "xvdb", false)),
                "{spec}"
            );
        }
        for spec in [
            "v,,xvdb,cdrom",
            "v,,xvdb:cdrom,r",
            "devtype=cdrom,vdev=xvdb,target=v",
        ] {
            let mut ignored = vec![];
            assert_eq!(
                parse(spec, &mut ignored),
                Ok(disk("v", "xvdb", false)),
                "{spec}"
            );
            assert_eq!(ignored.len(), 1);
        }
    }

    #[test]
    fn what_has_no_meaning_is_named() {
        let mut ignored = vec![];
        let spec = "v,,xvda,w,discard,backendtype=phy,script=block-x,backend=disk0";
        assert!(parse(spec, &mut ignored).is_ok());
        assert_eq!(ignored, ["discard", "backendtype", "script", "backend"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (spec, expected) in [
            ("", "'' names no volume"),
            ("v", "the disk on volume v has no vdev (xvda, ...)"),
            (
                "/dev/vg/x,,xvda",
                "'/dev/vg/x' is a path; the target is the name of a volume on the host (make one with: closer volume import)",
            ),
            (
                "phy:/dev/x,xvda,w",
                "'/dev/x' is a path; the target is the name of a volume on the host (make one with: closer volume import)",
            ),
            (
                "v,qcow2,xvda",
                "format=qcow2 is not supported; import the image as a volume, it is raw then",
            ),
            ("v,zip,xvda", "'zip' is no disk format"),
            (
                "v,,vda",
                "vdev 'vda' is no virtual disk (xvda, xvdb, ... xvda1, ...)",
            ),
            ("v,,xvda,x", "access 'x' is none of r, ro, w, rw"),
            ("v,,xvda,w,w", "'w' is one parameter too many"),
            ("v,,xvda,vdev=xvdb", "vdev is given twice"),
            ("v,,xvda,target=w", "target is given twice"),
            (
                "v,,xvda,specification=virtio",
                "specification=virtio is not supported; only xen is",
            ),
            ("v,,xvda,colour=red", "unknown parameter 'colour'"),
            (
                "v w,,xvda",
                "bad name \"v w\": letters, digits and +-._ only",
            ),
        ] {
            assert_eq!(parse(spec, &mut vec![]), Err(expected.to_owned()), "{spec}");
        }
    }
}
