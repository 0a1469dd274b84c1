//! Operations on one domain.

use super::{CallError, CreateLayout, Xen};
use crate::config::TscMode;
use crate::hypercalls::{Buffer, Hypercalls};
use crate::info::DomainInfo;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::offset_of;
use xen_abi::arch_x86::VcpuGuestContext;
use xen_abi::domctl::{
    self, CpuPolicy, CpuidLeaf, GetDomainInfo, GetVcpuInfo, HvmContext, HypercallInit, MaxMem,
    MaxVcpus, PagingMempool, TscInfo, VcpuAffinity, VcpuContext, cmd, v4_17, v4_19,
};
use xen_abi::errno::Errno;
use xen_abi::{DomId, sysctl};
use zerocopy::{FromZeros, IntoBytes};

/// Frames of 256 mappings each that Xen may need for a guest that maps others' grants. Few
/// guests do (vchan between guests; backends are all ours), and by default each could take
/// 1024 frames of Xen's memory.
const MAX_MAPTRACK_FRAMES: i32 = 16;

/// What a domain is from its first moment on.
#[derive(Clone, Copy, Debug)]
pub struct NewDomain {
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Hardware-virtualised (PVH), else PV.
    pub hvm: bool,
    /// vCPUs it can ever have.
    pub max_vcpus: u32,
}

impl<H: Hypercalls> Xen<'_, H> {
    /// `XEN_DOMCTL_createdomain`; Xen chooses the number.
    ///
    /// Grants are of version 1 only: no stock guest needs version 2, and its sub-page
    /// and transitive grants cannot be mapped.
    ///
    /// # Errors
    /// Xen's own.
    pub fn create_domain(&self, new: &NewDomain) -> Result<DomId, CallError> {
        const CALL: &str = "createdomain";
        // DOMID_ANY, "choose one": demanded from 4.22 on, and before it one of the
        // numbers out of range that mean the same.
        const ANY: DomId = DomId(0x7ff5);
        // The default of libxl.
        const MAX_EVTCHN_PORT: u32 = 1023;
        const GRANT_VERSION: u32 = 1;
        // Xen's own limit (`gnttab_max_frames`): 4.17 refuses any that is above it.
        const MAX_GRANT_FRAMES: i32 = -1;
        let flags = if new.hvm {
            domctl::CDF_HVM | domctl::CDF_HAP
        } else {
            0
        };
        let emulation_flags = if new.hvm { domctl::EMU_LAPIC } else { 0 };
        match self.interface.create {
            CreateLayout::V4_17 => self.domctl(
                CALL,
                cmd::CREATEDOMAIN,
                ANY,
                &mut v4_17::CreateDomain {
                    handle: new.uuid,
                    flags,
                    max_vcpus: new.max_vcpus,
                    max_evtchn_port: MAX_EVTCHN_PORT,
                    max_grant_frames: MAX_GRANT_FRAMES,
                    max_maptrack_frames: MAX_MAPTRACK_FRAMES,
                    grant_opts: GRANT_VERSION,
                    emulation_flags,
                    ..Default::default()
                },
                &mut [],
            ),
            CreateLayout::V4_19 => self.domctl(
                CALL,
                cmd::CREATEDOMAIN,
                ANY,
                &mut v4_19::CreateDomain {
                    handle: new.uuid,
                    flags,
                    max_vcpus: new.max_vcpus,
                    max_evtchn_port: MAX_EVTCHN_PORT,
                    max_grant_frames: MAX_GRANT_FRAMES,
                    max_maptrack_frames: MAX_MAPTRACK_FRAMES,
                    grant_opts: GRANT_VERSION,
                    emulation_flags,
                    ..Default::default()
                },
                &mut [],
            ),
        }
    }

    /// `XEN_DOMCTL_destroydomain`, once. -ERESTART (as -EAGAIN or hidden by Xen's
    /// continuation): call again; 0: Xen ends it by itself, which
    /// [`domain_info`](Self::domain_info) tells.
    ///
    /// # Errors
    /// Xen's own.
    pub fn destroy_domain(&self, domain: DomId) -> Result<(), CallError> {
        self.plain("destroydomain", cmd::DESTROYDOMAIN, domain)
    }

    /// `XEN_DOMCTL_pausedomain`.
    ///
    /// # Errors
    /// Xen's own.
    pub fn pause_domain(&self, domain: DomId) -> Result<(), CallError> {
        self.plain("pausedomain", cmd::PAUSEDOMAIN, domain)
    }

    /// `XEN_DOMCTL_unpausedomain`: also what starts a new domain.
    ///
    /// # Errors
    /// Xen's own.
    pub fn unpause_domain(&self, domain: DomId) -> Result<(), CallError> {
        self.plain("unpausedomain", cmd::UNPAUSEDOMAIN, domain)
    }

    /// `XEN_DOMCTL_getdomaininfo`; `None`: there is no such domain.
    ///
    /// # Errors
    /// Xen's own, but -ESRCH.
    pub fn domain_info(&self, domain: DomId) -> Result<Option<DomainInfo>, CallError> {
        let mut info = GetDomainInfo::default();
        match self.domctl(
            "getdomaininfo",
            cmd::GETDOMAININFO,
            domain,
            &mut info,
            &mut [],
        ) {
            // 4.17 answers with the next domain if there is none of this number.
            Ok(_) if info.domain != domain.0 => Ok(None),
            Ok(_) => Ok(Some(DomainInfo::from(&info))),
            Err(CallError {
                errno: Errno::ESRCH,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `XEN_SYSCTL_getdomaininfolist`: every domain, dom0 and dying ones too.
    ///
    /// # Errors
    /// Xen's own.
    pub fn domains(&self) -> Result<Vec<DomainInfo>, CallError> {
        const BATCH: u32 = 64;
        let size = size_of::<GetDomainInfo>();
        let mut all = Vec::new();
        let mut raw = vec![GetDomainInfo::default(); BATCH as usize];
        let mut first = 0;
        loop {
            let mut list = sysctl::GetDomainInfoList {
                first_domain: first,
                max_domains: BATCH,
                ..Default::default()
            };
            self.sysctl(
                "getdomaininfolist",
                sysctl::cmd::GETDOMAININFOLIST,
                &mut list,
                &mut [Buffer {
                    pointer_at: offset_of!(sysctl::GetDomainInfoList, buffer),
                    bytes: raw.as_mut_bytes(),
                }],
            )?;
            debug_assert_eq!(raw.as_bytes().len(), size * raw.len());
            let found = &raw[..(list.num_domains.min(BATCH)) as usize];
            all.extend(found.iter().map(DomainInfo::from));
            match found.last() {
                Some(last) if list.num_domains >= BATCH && last.domain < u16::MAX => {
                    first = last.domain + 1;
                }
                _ => return Ok(all),
            }
        }
    }

    /// `XEN_DOMCTL_getvcpuinfo`: for each vCPU whether it is online, on which physical
    /// CPU, and the nanoseconds it has run.
    ///
    /// # Errors
    /// Xen's own; -ESRCH also for a vCPU that does not exist.
    pub fn vcpu_info(&self, domain: DomId, vcpu: u32) -> Result<GetVcpuInfo, CallError> {
        let mut info = GetVcpuInfo {
            vcpu,
            ..Default::default()
        };
        self.domctl("getvcpuinfo", cmd::GETVCPUINFO, domain, &mut info, &mut [])?;
        Ok(info)
    }

    /// `XEN_DOMCTL_max_vcpus`: makes the vCPUs; the number must be that of
    /// [`NewDomain`].
    ///
    /// # Errors
    /// Xen's own.
    pub fn set_max_vcpus(&self, domain: DomId, max: u32) -> Result<(), CallError> {
        self.domctl(
            "max_vcpus",
            cmd::MAX_VCPUS,
            domain,
            &mut MaxVcpus { max },
            &mut [],
        )
        .map(drop)
    }

    /// `XEN_DOMCTL_max_mem`, in KiB.
    ///
    /// # Errors
    /// Xen's own.
    pub fn set_max_memory(&self, domain: DomId, max_memkb: u64) -> Result<(), CallError> {
        self.domctl(
            "max_mem",
            cmd::MAX_MEM,
            domain,
            &mut MaxMem { max_memkb },
            &mut [],
        )
        .map(drop)
    }

    /// `XEN_DOMCTL_setvcpuaffinity`: the only physical CPUs that `vcpu` may run on.
    ///
    /// # Errors
    /// Xen's own; -EINVAL if none of `cpus` is online.
    pub fn set_hard_affinity(
        &self,
        domain: DomId,
        vcpu: u32,
        cpus: &[u32],
    ) -> Result<(), CallError> {
        let most = cpus.iter().copied().max().unwrap_or(0);
        let mut hard = vec![0u8; (most as usize / 64 + 1) * 8];
        for &cpu in cpus {
            hard[cpu as usize / 8] |= 1 << (cpu % 8);
        }
        let mut affinity = VcpuAffinity {
            vcpu,
            flags: domctl::VCPUAFFINITY_HARD,
            ..Default::default()
        };
        affinity.cpumap_hard.nr_bits = (most / 64 + 1) * 64;
        self.domctl(
            "setvcpuaffinity",
            cmd::SETVCPUAFFINITY,
            domain,
            &mut affinity,
            &mut [Buffer {
                pointer_at: offset_of!(VcpuAffinity, cpumap_hard)
                    + offset_of!(domctl::Bitmap, bitmap),
                bytes: &mut hard,
            }],
        )
        .map(drop)
    }

    /// `XEN_DOMCTL_set_paging_mempool_size`, in bytes: what Xen may spend on the second
    /// level of page tables.
    ///
    /// # Errors
    /// Xen's own; -ENOMEM.
    pub fn set_paging_pool(&self, domain: DomId, size: u64) -> Result<(), CallError> {
        self.domctl(
            "set_paging_mempool_size",
            cmd::SET_PAGING_MEMPOOL_SIZE,
            domain,
            &mut PagingMempool { size },
            &mut [],
        )
        .map(drop)
    }

    /// `XEN_DOMCTL_settscinfo`, for a new domain; after its vCPUs are made.
    ///
    /// # Errors
    /// Xen's own.
    pub fn set_tsc_mode(&self, domain: DomId, mode: TscMode) -> Result<(), CallError> {
        let tsc_mode = match mode {
            TscMode::Default => 0,
            TscMode::AlwaysEmulate => 1,
            TscMode::Native => 2,
        };
        self.domctl(
            "settscinfo",
            cmd::SETTSCINFO,
            domain,
            &mut TscInfo {
                tsc_mode,
                ..TscInfo::default()
            },
            &mut [],
        )
        .map(drop)
    }

    /// `XEN_SYSCTL_get_cpu_policy`: what CPUID says to an HVM domain by default.
    ///
    /// # Errors
    /// Xen's own.
    pub fn default_hvm_cpuid(&self) -> Result<Vec<CpuidLeaf>, CallError> {
        const CALL: &str = "get_cpu_policy";
        let mut policy = sysctl::CpuPolicy {
            index: sysctl::CPU_POLICY_HVM_DEFAULT,
            ..Default::default()
        };
        // Without lists Xen answers how much room they need.
        self.sysctl(CALL, sysctl::cmd::GET_CPU_POLICY, &mut policy, &mut [])?;
        let mut leaves = vec![CpuidLeaf::default(); policy.nr_leaves as usize];
        policy = sysctl::CpuPolicy {
            index: sysctl::CPU_POLICY_HVM_DEFAULT,
            nr_leaves: policy.nr_leaves,
            ..Default::default()
        };
        self.sysctl(
            CALL,
            sysctl::cmd::GET_CPU_POLICY,
            &mut policy,
            &mut [Buffer {
                pointer_at: offset_of!(sysctl::CpuPolicy, leaves),
                bytes: leaves.as_mut_bytes(),
            }],
        )?;
        leaves.truncate(policy.nr_leaves as usize);
        Ok(leaves)
    }

    /// `XEN_DOMCTL_set_cpu_policy`: what CPUID says to this domain. Before any vCPU has
    /// a context.
    ///
    /// # Errors
    /// Xen's own; -EINVAL if the host cannot do it.
    pub fn set_cpuid(&self, domain: DomId, leaves: &mut [CpuidLeaf]) -> Result<(), CallError> {
        let mut policy = CpuPolicy {
            nr_leaves: u32::try_from(leaves.len()).unwrap_or(u32::MAX),
            err_leaf: !0,
            err_subleaf: !0,
            err_msr: !0,
            ..Default::default()
        };
        self.domctl(
            "set_cpu_policy",
            cmd::SET_CPU_POLICY,
            domain,
            &mut policy,
            &mut [Buffer {
                pointer_at: offset_of!(CpuPolicy, leaves),
                bytes: leaves.as_mut_bytes(),
            }],
        )
        .map(drop)
    }

    /// `XEN_DOMCTL_gethvmcontext`: every record of the domain's hardware state.
    ///
    /// # Errors
    /// Xen's own.
    pub fn hvm_context(&self, domain: DomId) -> Result<Vec<u8>, CallError> {
        const CALL: &str = "gethvmcontext";
        let mut context = HvmContext::default();
        // Without a buffer Xen answers how much room it needs.
        self.domctl(CALL, cmd::GETHVMCONTEXT, domain, &mut context, &mut [])?;
        let mut bytes = vec![0; context.size as usize];
        self.domctl(
            CALL,
            cmd::GETHVMCONTEXT,
            domain,
            &mut context,
            &mut [Buffer {
                pointer_at: offset_of!(HvmContext, buffer),
                bytes: &mut bytes,
            }],
        )?;
        bytes.truncate(context.size as usize);
        Ok(bytes)
    }

    /// `XEN_DOMCTL_sethvmcontext`. Puts every vCPU down that it has no record of.
    ///
    /// # Errors
    /// Xen's own; -EINVAL: a record that Xen does not believe.
    pub fn set_hvm_context(&self, domain: DomId, bytes: &mut [u8]) -> Result<(), CallError> {
        self.domctl(
            "sethvmcontext",
            cmd::SETHVMCONTEXT,
            domain,
            &mut HvmContext {
                size: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                ..Default::default()
            },
            &mut [Buffer {
                pointer_at: offset_of!(HvmContext, buffer),
                bytes,
            }],
        )
        .map(drop)
    }

    /// `XEN_DOMCTL_setvcpucontext`: where a PV vCPU starts.
    ///
    /// # Errors
    /// Xen's own; -EINVAL: e.g. a CR3 that is no root page table.
    pub fn set_vcpu_context(
        &self,
        domain: DomId,
        vcpu: u32,
        context: &mut VcpuGuestContext,
    ) -> Result<(), CallError> {
        self.domctl(
            "setvcpucontext",
            cmd::SETVCPUCONTEXT,
            domain,
            &mut VcpuContext {
                vcpu,
                ..VcpuContext::new_zeroed()
            },
            &mut [Buffer {
                pointer_at: offset_of!(VcpuContext, ctxt),
                bytes: context.as_mut_bytes(),
            }],
        )
        .map(drop)
    }

    /// `XEN_DOMCTL_hypercall_init`: fills a page of the domain with the hypercall
    /// stubs. `frame`: machine frame for PV.
    ///
    /// # Errors
    /// Xen's own.
    pub fn init_hypercall_page(&self, domain: DomId, frame: u64) -> Result<(), CallError> {
        self.domctl(
            "hypercall_init",
            cmd::HYPERCALL_INIT,
            domain,
            &mut HypercallInit { gmfn: frame },
            &mut [],
        )
        .map(drop)
    }
}
