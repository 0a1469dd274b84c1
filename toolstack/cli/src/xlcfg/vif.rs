//! `vif=` entries, as xl-network-configuration(5) describes them.

/// MTU of an interface when nothing else is said.
pub const DEFAULT_MTU: u16 = 1500;

/// One network interface, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XlVif {
    /// `mac=`
    pub mac: Option<[u8; 6]>,
    /// `mtu=`
    pub mtu: u16,
}

/// Parses one entry. What is read but means nothing here is added to `ignored`.
pub fn parse(spec: &str, ignored: &mut Vec<String>) -> Result<XlVif, String> {
    let mut vif = XlVif {
        mac: None,
        mtu: DEFAULT_MTU,
    };
    for word in spec.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "mac" => vif.mac = Some(mac(value)?),
            "mtu" => {
                // Below 68 IPv4 does not work; above 65521 a frame does not fit netif's
                // 16 bits with its Ethernet header.
                vif.mtu = value
                    .parse()
                    .ok()
                    .filter(|mtu| (68..=65521).contains(mtu))
                    .ok_or_else(|| format!("mtu '{}' is not 68 to 65521", value.escape_debug()))?;
            }
            "type" if value == "vif" => {}
            "type" => {
                return Err(format!(
                    "type '{}' is not supported; only vif is",
                    value.escape_debug()
                ));
            }
            "bridge" | "script" | "ip" | "backend" | "vifname" | "model" | "rate" | "devid"
            | "gatewaydev" | "netdev" | "vlan" | "trusted" | "untrusted" | "accel"
            | "forwarddev" => ignored.push(key.to_owned()),
            _ if key.starts_with("colo_") => ignored.push(key.to_owned()),
            _ => return Err(format!("unknown parameter '{}'", key.escape_debug())),
        }
    }
    Ok(vif)
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = |why| format!("mac '{}' {why}", text.escape_debug());
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| (1..=2).contains(&p.len()));
        *byte = part
            .filter(|p| p.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|p| u8::from_str_radix(p, 16).ok())
            .ok_or_else(|| wrong("is not of the form 00:16:3e:xx:xx:xx"))?;
    }
    if parts.next().is_some() {
        return Err(wrong("is not of the form 00:16:3e:xx:xx:xx"));
    }
    if mac[0] & 1 != 0 {
        return Err(wrong("is a group address"));
    }
    if mac == [0; 6] {
        return Err(wrong("is nobody's address"));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_entry_is_an_interface_with_defaults() {
        let default = XlVif {
            mac: None,
            mtu: 1500,
        };
        assert_eq!(parse("", &mut vec![]), Ok(default));
        assert_eq!(parse(" type=vif ", &mut vec![]), Ok(default));
    }

    #[test]
    fn addresses_and_mtus_are_read_and_the_rest_is_named() {
        let mut ignored = vec![];
        let spec = "mac=00:16:3E:1:02:ff, bridge=xenbr0,mtu=9000,rate=10Mb/s@20ms";
        assert_eq!(
            parse(spec, &mut ignored),
            Ok(XlVif {
                mac: Some([0, 0x16, 0x3e, 1, 2, 0xff]),
                mtu: 9000
            })
        );
        assert_eq!(ignored, ["bridge", "rate"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (spec, expected) in [
            ("mac=", "mac '' is not of the form 00:16:3e:xx:xx:xx"),
            (
                "mac=00:16:3e:00:00",
                "mac '00:16:3e:00:00' is not of the form 00:16:3e:xx:xx:xx",
            ),
            (
                "mac=00:16:3e:00:00:00:00",
                "mac '00:16:3e:00:00:00:00' is not of the form 00:16:3e:xx:xx:xx",
            ),
            (
                "mac=00:16:3e:00:00:+1",
                "mac '00:16:3e:00:00:+1' is not of the form 00:16:3e:xx:xx:xx",
            ),
            (
                "mac=01:00:5e:00:00:01",
                "mac '01:00:5e:00:00:01' is a group address",
            ),
            ("mac=0:0:0:0:0:0", "mac '0:0:0:0:0:0' is nobody's address"),
            ("mtu=67", "mtu '67' is not 68 to 65521"),
            ("mtu=lots", "mtu 'lots' is not 68 to 65521"),
            ("type=ioemu", "type 'ioemu' is not supported; only vif is"),
            ("speed=1", "unknown parameter 'speed'"),
        ] {
            assert_eq!(parse(spec, &mut vec![]), Err(expected.to_owned()), "{spec}");
        }
    }
}
