#![allow(clippy::panic, reason = "tests")]

use super::*;
use toolstack_domain::config::{ImageId, Kernel};

const MINIMAL: &str = "name = 'g'\nkernel = 'vmlinuz'\nmemory = 64\n";

fn good(text: &str, overrides: &[&str]) -> (XlConfig, Vec<String>) {
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    let (config, warnings) = parse(text, "g.cfg", &overrides, true);
    match config {
        Ok(config) => (config, warnings.iter().map(Warning::to_string).collect()),
        Err(error) => panic!("{error}\n{text}"),
    }
}

fn bad(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    match parse(text, "g.cfg", &overrides, true).0 {
        Ok(config) => panic!("{text} gives {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_file_as_administrators_write_it_is_read() {
    let text = r#"
# A Debian guest
type = "pvh"; name = "web1"
kernel = '/boot/vmlinuz-6.12'   # the host's own
ramdisk = "/boot/initrd"
root = "/dev/xvda1 ro"
extra = "console=hvc0 " 
extra += 'quiet'
memory = 0x200
maxmem = "512"
vcpus = 2
maxvcpus = 010
cpus = "0-3,^1"
disk = [
    'web1-root,raw,xvda,rw',   # system
    "vdev=xvdb,access=ro,target=volume:data",
]
vif = [ 'mac=00:16:3e:00:00:01,bridge=xenbr0', "" ]
on_poweroff = "preserve"
on_reboot = 'destroy'
on_crash = "coredump-restart"
tsc_mode = "native"
uuid = "01234567-89ab-CDEF-0123-456789abcdef"
"#;
    let (config, warnings) = good(text, &[]);
    assert_eq!(
        warnings,
        [
            "g.cfg:18: vif: no effect here: bridge",
            "g.cfg:21: on_crash: no core is dumped",
        ]
    );
    assert_eq!(
        config,
        XlConfig {
            name: "web1".into(),
            kind: GuestType::Pvh,
            kernel: "/boot/vmlinuz-6.12".into(),
            ramdisk: Some("/boot/initrd".into()),
            cmdline: "root=/dev/xvda1 ro console=hvc0 quiet".into(),
            memory_mib: 512,
            vcpus: 2,
            max_vcpus: 8,
            cpus: CpuList::parse("0-3,^1").unwrap(),
            cpus_at: config.cpus_at.clone(),
            disks: vec![
                XlDisk {
                    volume: "web1-root".into(),
                    vdev: "xvda".into(),
                    writable: true
                },
                XlDisk {
                    volume: "data".into(),
                    vdev: "xvdb".into(),
                    writable: false
                },
            ],
            vifs: vec![
                XlVif {
                    mac: Some([0, 0x16, 0x3e, 0, 0, 1]),
                    mtu: 1500
                },
                XlVif {
                    mac: None,
                    mtu: 1500
                },
            ],
            on_poweroff: Action::Preserve,
            on_reboot: Action::Destroy,
            on_crash: Action::Restart,
            tsc_mode: TscMode::Native,
            uuid: Some([
                1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd,
                0xef
            ]),
        }
    );
}

#[test]
fn what_is_not_said_is_as_in_xl() {
    let (config, warnings) = good(MINIMAL, &[]);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.kind, GuestType::Pv);
    assert_eq!((config.vcpus, config.max_vcpus), (1, 1));
    assert_eq!(config.cmdline, "");
    assert_eq!(config.on_poweroff, Action::Destroy);
    assert_eq!(config.on_reboot, Action::Restart);
    assert_eq!(config.on_crash, Action::Destroy);
    assert_eq!(config.tsc_mode, TscMode::Default);
    assert!(config.cpus.is_empty() && config.disks.is_empty() && config.vifs.is_empty());
}

#[test]
fn arguments_win_over_the_file_with_or_without_quotes() {
    let (config, warnings) = good(
        MINIMAL,
        &[
            "memory=0x80",
            "name=\"other\"",
            "type=pvh",
            " extra = console=hvc0 quiet ",
            "extra+= more",
            "disk=['v,,xvda,w']",
            "uuid=01234567-89ab-cdef-0123-456789abcdef",
        ],
    );
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.memory_mib, 128);
    assert_eq!(config.name, "other");
    assert_eq!(config.kind, GuestType::Pvh);
    assert_eq!(config.cmdline, "console=hvc0 quietmore");
    assert_eq!(config.disks.len(), 1);
    assert!(config.uuid.is_some());
    assert_eq!(
        bad(MINIMAL, &["memory"]),
        "command line:1:7: expected '=' after the key, found the end"
    );
    assert_eq!(
        bad(MINIMAL, &["vif=['' ] x"]),
        "command line:1:11: expected the end of the argument, found 'x'"
    );
    assert_eq!(
        bad(MINIMAL, &["memory=lots"]),
        "command line:1:8: memory: 'lots' is not a number"
    );
}

#[test]
fn malformed_files_are_refused_with_their_place() {
    for (text, expected) in [
        (
            "name",
            "g.cfg:1:5: expected '=' after the key, found the end",
        ),
        (
            "name 'g'",
            "g.cfg:1:6: expected '=' after the key, found '\\''",
        ),
        (
            "name = g",
            "g.cfg:1:8: expected a number, a quoted string or a list, found 'g'",
        ),
        ("name = 'g", "g.cfg:1:8: the string has no closing quote"),
        ("name = 'g\n'", "g.cfg:1:8: the string has no closing quote"),
        (
            "name = 'g' 'h'",
            "g.cfg:1:12: expected the end of the line, found '\\''",
        ),
        (
            "name =\n 'g'",
            "g.cfg:1:7: expected a number, a quoted string or a list, found the end of the line",
        ),
        (
            "Name = 'g'",
            "g.cfg:1:1: expected a key in lower case, found 'N'",
        ),
        (
            "\n\n  = 1",
            "g.cfg:3:3: expected a key in lower case, found '='",
        ),
        (
            "import os",
            "g.cfg:1:8: this looks like Python; only key = value is read",
        ),
        (
            "disk = [ 'a' 'b' ]",
            "g.cfg:1:14: expected ',' or ']', found '\\''",
        ),
        (
            "disk = [ 'a',\n",
            "g.cfg:2:1: expected a number, a quoted string or a list, found the end",
        ),
        (
            "disk = [ , ]",
            "g.cfg:1:10: expected a number, a quoted string or a list, found ','",
        ),
        (
            "a = [[[[[[[[[1]]]]]]]]]",
            "g.cfg:1:13: lists nested too deeply",
        ),
        (
            "a = '\\q'",
            "g.cfg:1:7: expected an escape such as \\n, \\\" or \\x41, found 'q'",
        ),
        (
            "a = '\\x4'",
            "g.cfg:1:9: a numeric escape that is not an ASCII character",
        ),
        (
            "a = '\\377'",
            "g.cfg:1:10: a numeric escape that is not an ASCII character",
        ),
        (
            "vif = ['a']\nvif += 'b'",
            "g.cfg:2:8: vif += cannot join a list and a string",
        ),
        (
            "a = -1",
            "g.cfg:1:5: expected a number, a quoted string or a list, found '-'",
        ),
    ] {
        assert_eq!(bad(text, &[]), expected, "{text}");
    }
}

#[test]
fn wrong_values_are_refused_with_their_place() {
    for (line, expected) in [
        (
            "type = 'hvm'",
            "g.cfg:4:8: HVM guests need a device model, which this host does not have; most Linux guests run with type = \"pvh\"",
        ),
        (
            "builder = 'hvm'",
            "g.cfg:4:11: HVM guests need a device model, which this host does not have; most Linux guests run with type = \"pvh\"",
        ),
        (
            "type = 'pvh'; builder = 'generic'",
            "g.cfg:4:25: builder = \"generic\" contradicts type = \"pvh\"",
        ),
        ("type = 'vm'", "g.cfg:4:8: type: 'vm' is neither pv nor pvh"),
        ("type = ['pv']", "g.cfg:4:8: type is one value, not a list"),
        (
            "name = 'a b'",
            "g.cfg:4:8: bad name \"a b\": letters, digits and +-._ only",
        ),
        (
            "name = '12'",
            "g.cfg:4:8: bad name \"12\": a number would be taken for a domid",
        ),
        ("name = ''", "g.cfg:4:8: bad name \"\": 1 to 64 characters"),
        ("memory = 0", "g.cfg:4:10: memory: 0 is not 1 to 16777216"),
        (
            "memory = '512M'",
            "g.cfg:4:10: memory: '512M' is not a number",
        ),
        (
            "memory = 99999999999999999999999",
            "g.cfg:4:10: memory: 99999999999999999999999 is not 1 to 16777216",
        ),
        (
            "maxmem = 63",
            "g.cfg:4:10: maxmem (63) is less than memory (64)",
        ),
        ("vcpus = 0x", "g.cfg:4:9: vcpus: '0x' is not a number"),
        ("vcpus = 08", "g.cfg:4:9: vcpus: '08' is not a number"),
        ("vcpus = 513", "g.cfg:4:9: vcpus: 513 is not 1 to 512"),
        (
            "vcpus = 2\nmaxvcpus = 1",
            "g.cfg:5:12: maxvcpus (1) is less than vcpus (2)",
        ),
        (
            "cpus = 'some'",
            "g.cfg:4:8: cpus: 'some' is not a CPU or a range of CPUs such as 0-3",
        ),
        (
            "vcpus = 2; cpus = ['0', '1-2,^1']",
            "g.cfg:4:25: cpus: ^ is not supported in a list with one entry a vCPU",
        ),
        (
            "disk = 'v,,xvda,w'",
            "g.cfg:4:8: disk is a list: disk = [ '...', ]",
        ),
        (
            "disk = [ ['v'] ]",
            "g.cfg:4:10: the entries of disk are strings, not lists",
        ),
        (
            "disk = [ 'v,,xvda,w',\n 'w,,xvda,w' ]",
            "g.cfg:5:2: disk: vdev xvda is given twice",
        ),
        (
            "disk = [ 'v,,xvda,w', 'v,,xvdb,r' ]",
            "g.cfg:4:23: disk: volume v is given twice",
        ),
        (
            "vif = [ 'mac=00:16:3e:0:0:1', 'mac=00:16:3e:00:00:01' ]",
            "g.cfg:4:31: vif: the same mac is given twice",
        ),
        (
            "vif = [ 'colour=red' ]",
            "g.cfg:4:9: vif: unknown parameter 'colour'",
        ),
        (
            "on_crash = 'explode'",
            "g.cfg:4:12: on_crash: 'explode' is none of destroy, restart, rename-restart, preserve",
        ),
        (
            "tsc_mode = 'native_paravirt'",
            "g.cfg:4:12: tsc_mode: 'native_paravirt' is none of default, always_emulate, native",
        ),
        (
            "uuid = '1234'",
            "g.cfg:4:8: uuid: '1234' is not of the form 01234567-89ab-cdef-0123-456789abcdef",
        ),
        (
            "firmware = 'uefi'",
            "g.cfg:4:12: firmware: 'uefi' is not supported; only pvgrub64 is",
        ),
        (
            "firmware = 'pvgrub64'",
            "g.cfg:4:12: firmware and kernel cannot both be set",
        ),
        (
            "extra = 'a\\nb'",
            "g.cfg:4:9: the command line holds a control character",
        ),
        (
            "memroy = 5",
            "g.cfg:4:1: unknown key memroy (is memory meant?)",
        ),
        ("colour = 'red'", "g.cfg:4:1: unknown key colour"),
    ] {
        assert_eq!(bad(&format!("{MINIMAL}{line}"), &[]), expected, "{line}");
    }
    let long = format!("{MINIMAL}extra = '{}'", "x".repeat(1024));
    assert_eq!(
        bad(&long, &[]),
        "g.cfg:4:9: the command line has 1024 bytes, more than 1023"
    );
    assert_eq!(good(&long, &["type=pvh"]).0.cmdline.len(), 1024);
}

#[test]
fn what_is_missing_is_named() {
    for (text, expected) in [
        ("", "g.cfg: memory is not set (in MiB)"),
        ("memory = 1", "g.cfg: name is not set"),
        (
            "memory = 1; name = 'g'",
            "g.cfg: kernel is not set (to boot what is on the guest's disk: kernel = \"/usr/lib/grub-xen/grub-x86_64-xen.bin\")",
        ),
        (
            "memory = 1; name = 'g'; type = 'pvh'; bootloader = 'pygrub'",
            "g.cfg:1:52: bootloader: the host runs no program on a guest's disk; boot GRUB inside the guest with kernel = \"/usr/lib/grub-xen/grub-i386-xen_pvh.bin\" (Debian's grub-xen-host)",
        ),
    ] {
        assert_eq!(bad(text, &[]), expected, "{text}");
    }
}

#[test]
fn known_keys_without_effect_are_warnings_even_when_strict() {
    let text = format!(
        "{MINIMAL}vnc = 1\npci = [ '00:01.0' ]\nnomigrate = 1\ncpuid = 'host'\nvnuma = [ [ 'pnode=0' ] ]\n\
         gic_version = 'v3'\nroot = '/dev/xvda'\ncmdline = 'x'\nbootloader = 'pygrub'\nmaxmem = 128\nmemory = 64\n"
    );
    assert_eq!(
        good(&text, &[]).1,
        [
            "g.cfg:4: vnc: is only for HVM guests; ignored",
            "g.cfg:5: pci: asks for a device that is not offered here; ignored",
            "g.cfg:6: nomigrate: is decided by the host; ignored",
            "g.cfg:7: cpuid: is not supported; ignored",
            "g.cfg:8: vnuma: is not supported; ignored",
            "g.cfg:9: gic_version: is for another processor architecture; ignored",
            "g.cfg:10: root: ignored, because cmdline is set",
            "g.cfg:12: bootloader: the host runs none; ignored, kernel is booted",
            "g.cfg:13: maxmem: a guest cannot grow yet; it has its 64 MiB",
            "g.cfg:14: memory: replaces the value of line 3",
        ]
    );
}

#[test]
fn an_unknown_key_is_a_warning_unless_strict() {
    let text = format!("{MINIMAL}memroy = 5\n");
    let (config, warnings) = parse(&text, "g.cfg", &[], false);
    config.unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!(
        warnings[0].to_string(),
        "g.cfg:4: memroy: unknown key (is memory meant?); ignored"
    );
}

#[test]
fn grub_is_found_by_its_firmware_name() {
    let text = "name = 'g'\nmemory = 64\nfirmware = 'pvgrub64'\n";
    for (kind, grub) in [
        ("pv", "grub-x86_64-xen.bin"),
        ("pvh", "grub-i386-xen_pvh.bin"),
    ] {
        let (config, warnings) = good(text, &[&format!("type={kind}")]);
        assert!(config.kernel.ends_with(grub));
        assert_eq!(warnings.len(), 1);
    }
}

#[test]
fn a_list_of_cpus_is_one_entry_a_vcpu() {
    let (config, warnings) = good(MINIMAL, &["vcpus=2", "cpus=['1', '2-3', '9']"]);
    assert_eq!(config.cpus.resolve(&[]).unwrap(), [1, 2, 3]);
    assert_eq!(
        warnings,
        ["command line:1: cpus: the host spreads the vCPUs over all the CPUs named"]
    );
}

#[test]
fn no_known_key_is_listed_twice() {
    for key in keys::READ {
        assert_eq!(keys::no_effect(key), None, "{key}");
    }
    assert_eq!(keys::near("vcpu"), Some("vcpus"));
    assert_eq!(keys::near("x"), None);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g.cfg");
    let error = load(&path, &[], false).0.unwrap_err().to_string();
    assert!(
        error.starts_with(path.to_str().unwrap()) && error.contains("No such file"),
        "{error}"
    );
    std::fs::write(&path, b"name = '\xff'").unwrap();
    let error = load(&path, &[], false).0.unwrap_err().to_string();
    assert!(error.ends_with("not UTF-8 text at byte 8"), "{error}");
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = load(&path, &[], false).0.unwrap_err().to_string();
    assert!(
        error.ends_with("larger than 1 MiB, so not a guest's definition"),
        "{error}"
    );
    std::fs::write(&path, MINIMAL).unwrap();
    assert_eq!(
        load(&path, &["memory=65".into()], true)
            .0
            .unwrap()
            .memory_mib,
        65
    );
}

#[test]
fn a_guest_gets_an_identity_where_it_has_none() {
    let kernel = Kernel {
        image: ImageId([1; 32]),
        segments: vec![],
        notes: vec![],
        entry: 0,
    };
    let (config, _) = good(
        MINIMAL,
        &["vif=['', 'mac=00:16:3e:00:00:01', '']", "cpus=node:1"],
    );
    let nodes = [vec![0, 1], vec![2, 3]];
    let guest = config.to_guest(kernel.clone(), None, &nodes).unwrap();
    let other = config.to_guest(kernel.clone(), None, &nodes).unwrap();
    assert_eq!(guest.cpus, [2, 3]);
    assert_ne!(guest.uuid, other.uuid);
    assert_eq!((guest.uuid[6] >> 4, guest.uuid[8] >> 6), (4, 2));
    for vif in [guest.vifs[0], guest.vifs[2]] {
        assert_eq!(vif.mac[..3], [0, 0x16, 0x3e]);
        assert!(vif.mac[3] < 0x80);
    }
    assert_ne!(guest.vifs[0], guest.vifs[2]);
    assert_eq!(guest.vifs[1].mac, [0, 0x16, 0x3e, 0, 0, 1]);
    let error = config.to_guest(kernel, None, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "command line:1:6: cpus: the host's nodes are not known"
    );
}

#[test]
fn every_example_is_good_without_a_warning() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xen-config/guests");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (config, warnings) = load(&path, &[], true);
        config.unwrap();
        assert_eq!(warnings, [], "{}", path.display());
        count += 1;
    }
    assert!(count > 0);
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_survived(text: String, argument: String) {
            fuzz::parse(text.as_bytes());
            fuzz::parse(format!("{MINIMAL}\0{argument}").as_bytes());
        }

        #[test]
        fn text_in_the_grammar_s_alphabet_is_survived(
            text in "[a-c\\[\\]'\"=+,;#\\\\x0-9 \n]{0,60}",
            key in proptest::sample::select(keys::READ.to_vec()),
        ) {
            fuzz::parse(text.as_bytes());
            fuzz::parse(format!("{MINIMAL}{key} = {text}").as_bytes());
            fuzz::parse(format!("{MINIMAL}{key} = ['{text}']").as_bytes());
        }

        #[test]
        fn every_string_can_be_quoted(text in "[^\0\n\\\\\"]{0,40}") {
            let file = format!("{MINIMAL}cpuid = \"{text}\"");
            let settings = syntax::parse_file(&file, "g").unwrap();
            prop_assert_eq!(&settings[3].value.kind, &syntax::Kind::Text(text));
        }

        #[test]
        fn boot_archives_and_the_rpc_have_one_rule_for_names(name in "[a-z0-9+._:/ -]{0,70}") {
            prop_assert_eq!(
                toolstack_boot::is_guest_name(&name),
                toolstack_rpc::server::check_name(&name).is_ok()
            );
        }

        #[test]
        fn any_disk_vif_and_cpu_list_is_survived(text in "[a-z0-9=,:^/. -]{0,40}") {
            let mut ignored = Vec::new();
            if let Ok(disk) = disk::parse(&text, &mut ignored) {
                prop_assert!(!disk.volume.is_empty() && !disk.vdev.is_empty());
            }
            if let Ok(vif) = vif::parse(&text, &mut ignored) {
                prop_assert!(vif.mtu >= 68);
            }
            if let Ok(cpus) = CpuList::parse(&text) {
                prop_assert!(cpus.resolve(&[]).is_ok() || cpus.needs_topology() || cpus.excludes());
            }
        }
    }
}
