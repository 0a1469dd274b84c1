//! What is known of the keys of xl.cfg(5), beside those that [`super::XlConfig`] holds.

/// Why a key of xl.cfg has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEffect {
    /// It tells libxl's device model or firmware something; there is none here.
    HvmOnly,
    /// It is for another architecture.
    OtherArchitecture,
    /// A device or a way to attach one that this host does not offer.
    NoSuchDevice,
    /// The host decides this itself.
    HostDecides,
    /// xl means something by it that this host does not do.
    NotSupported,
}

impl std::fmt::Display for NoEffect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NoEffect::HvmOnly => "is only for HVM guests",
            NoEffect::OtherArchitecture => "is for another processor architecture",
            NoEffect::NoSuchDevice => "asks for a device that is not offered here",
            NoEffect::HostDecides => "is decided by the host",
            NoEffect::NotSupported => "is not supported",
        })
    }
}

/// Keys that [`super::XlConfig`] is made of.
pub const READ: [&str; 22] = [
    "bootloader",
    "builder",
    "cmdline",
    "cpus",
    "disk",
    "extra",
    "firmware",
    "kernel",
    "maxmem",
    "maxvcpus",
    "memory",
    "name",
    "on_crash",
    "on_poweroff",
    "on_reboot",
    "ramdisk",
    "root",
    "tsc_mode",
    "type",
    "uuid",
    "vcpus",
    "vif",
];

const HVM_ONLY: &[&str] = &[
    "acpi",
    "acpi_laptop_slate",
    "acpi_s3",
    "acpi_s4",
    "altp2m",
    "apic",
    "bios",
    "bios_path_override",
    "boot",
    "device_model_args",
    "device_model_args_hvm",
    "device_model_args_pv",
    "device_model_override",
    "device_model_stubdomain_override",
    "device_model_stubdomain_seclabel",
    "device_model_user",
    "device_model_version",
    "display",
    "dm_restrict",
    "firmware_override",
    "gfx_passthru",
    "hdtype",
    "hpet",
    "keymap",
    "localtime",
    "mmio_hole",
    "ms_vm_genid",
    "nestedhvm",
    "nographic",
    "nx",
    "oos",
    "opengl",
    "pae",
    "rdm",
    "rdm_mem_boundary",
    "rtc_timeoffset",
    "sdl",
    "serial",
    "smbios",
    "smbios_firmware",
    "soundhw",
    "spice",
    "spice_clipboard_sharing",
    "spice_image_compression",
    "spice_streaming_video",
    "spiceagent_mouse",
    "spicedisable_ticketing",
    "spicehost",
    "spicepasswd",
    "spiceport",
    "spicetls_port",
    "spiceusbredirection",
    "spicevdagent",
    "stdvga",
    "stubdomain_cmdline",
    "stubdomain_kernel",
    "stubdomain_memory",
    "stubdomain_ramdisk",
    "usb",
    "usbdevice",
    "usbversion",
    "vga",
    "videoram",
    "viridian",
    "vkb_device",
    "vnc",
    "vncconsole",
    "vncdisplay",
    "vnclisten",
    "vncpasswd",
    "vncunused",
    "vncviewer",
    "vpt_align",
    "xauthority",
    "xen_platform_pci",
    "acpi_firmware",
    "external_patch",
    "vendor_device",
];

const OTHER_ARCHITECTURE: &[&str] = &[
    "arm_sci",
    "device_tree",
    "dt_passthrough_nodes",
    "dtdev",
    "gic_version",
    "llc_colors",
    "nr_spis",
    "sve",
    "tee",
    "vuart",
    "force_assign_without_iommu",
];

const NO_SUCH_DEVICE: &[&str] = &[
    "channel",
    "iomem",
    "ioports",
    "irqs",
    "p9",
    "pci",
    "pci_msitranslate",
    "pci_permissive",
    "pci_power_mgmt",
    "pci_seize",
    "pvcalls",
    "usbctrl",
    "usbdev",
    "vdispl",
    "vfb",
    "virtio",
    "vkb",
    "vsnd",
    "vtpm",
    "xen_9pfs",
];

const HOST_DECIDES: &[&str] = &[
    "claim_mode",
    "cpus_soft",
    "hap",
    "max_event_channels",
    "max_grant_frames",
    "max_grant_version",
    "max_maptrack_frames",
    "numa_placement",
    "nodes",
    "nomigrate",
    "pool",
    "shadow_memory",
    "xenstore_quota",
];

const NOT_SUPPORTED: &[&str] = &[
    "altp2m_count",
    "autostart",
    "bootloader_args",
    "bootloader_restrict",
    "bootloader_user",
    "cap",
    "cpu_weight",
    "cpuid",
    "driver_domain",
    "e820_host",
    "extratime",
    "init_seclabel",
    "latency",
    "mca_caps",
    "msr_relaxed",
    "on_soft_reset",
    "on_watchdog",
    "passthrough",
    "period",
    "pvshim",
    "pvshim_cmdline",
    "pvshim_extra",
    "pvshim_path",
    "seclabel",
    "slice",
    "suppress_spurious_page_faults",
    "timer_mode",
    "trap_unmapped_accesses",
    "vmtrace_buf_kb",
    "vnuma",
    "vpmu",
    "xend_suspend_evtchn_compat",
    "xenstore_feature_mask",
];

/// Whether xl knows `key` but it means nothing here, and why.
pub fn no_effect(key: &str) -> Option<NoEffect> {
    let groups = [
        (HVM_ONLY, NoEffect::HvmOnly),
        (OTHER_ARCHITECTURE, NoEffect::OtherArchitecture),
        (NO_SUCH_DEVICE, NoEffect::NoSuchDevice),
        (HOST_DECIDES, NoEffect::HostDecides),
        (NOT_SUPPORTED, NoEffect::NotSupported),
    ];
    groups
        .iter()
        .find(|(keys, _)| keys.contains(&key))
        .map(|(_, why)| *why)
}

/// The known key nearest to `key`, if it looks like a typing error of it.
pub fn near(key: &str) -> Option<&'static str> {
    READ.into_iter()
        .map(|known| (distance(key, known), known))
        .min()
        .filter(|(distance, known)| *distance <= 2 && known.len() > 2 * distance + 1)
        .map(|(_, known)| known)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // Only short keys can be near one of ours.
    for (i, a) in a.bytes().take(32).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
