//! Writing the toolstack's nodes into xenstore, and taking them away again.

use toolstack_domain::build::Built;
use toolstack_domain::config::GuestConfig;
use toolstack_domain::nodes::{Node, guest_nodes, home, vm_path};
use toolstack_rpc::RpcError;
use toolstack_xenstore::{Access, Perm, XsError};
use xen_abi::DomId;

use super::devices::BACKEND;
use super::host::{Host, failed};
use super::store::Store;

/// Makes a new domain known to xenstore, with its nodes.
pub fn write(host: &Host, config: &GuestConfig, built: &Built) -> Result<(), RpcError> {
    host.store
        .with(|server| server.domain_created(built.domain));
    write_all(&host.store, &guest_nodes(config, built), built.domain)
        .map_err(|error| failed("writing the domain's nodes", XsText(error)))
}

/// Gives a domain another name. That below `/vm` stays if another guest has the
/// configuration now.
pub fn rename(
    host: &Host,
    config: &GuestConfig,
    domid: DomId,
    name: &str,
    keep_vm: bool,
) -> Result<(), RpcError> {
    let dirs = [home(domid), vm_path(&config.uuid)];
    let dirs = &dirs[..dirs.len() - usize::from(keep_vm)];
    let renamed = host.store.with(|server| {
        server.transaction(|t| {
            dirs.iter()
                .try_for_each(|dir| t.write(&alloc::format!("{dir}/name"), name.as_bytes()))
        })
    });
    renamed.map_err(|error| failed("rename", XsText(error)))
}

/// Writes nodes in order, all or none.
pub fn write_all(store: &Store, nodes: &[Node], guest: DomId) -> Result<(), XsError> {
    store.with(|server| {
        server.transaction(|t| {
            nodes.iter().try_for_each(|node| {
                t.write(&node.path, node.value.as_bytes())?;
                let perms = node
                    .access
                    .entries(BACKEND, guest)
                    .map(|(domid, letter)| Perm {
                        domid,
                        access: if letter == 'r' {
                            Access::READ
                        } else {
                            Access::NONE
                        },
                    });
                t.set_perms(&node.path, &perms)
            })
        })
    })
}

/// Takes away what `write` and the guest's devices left of a domain. What is below `/vm` is
/// its configuration's, which may get another domain.
pub fn remove(host: &Host, domid: DomId) {
    let ours = home(BACKEND);
    for path in [
        alloc::format!("{ours}/backend/vbd/{domid}"),
        alloc::format!("{ours}/backend/vif/{domid}"),
        home(domid),
    ] {
        remove_tree(host, &path);
    }
}

/// Takes away what is below `/vm` for a configuration that no guest has any more.
pub fn remove_vm(host: &Host, config: &GuestConfig) {
    remove_tree(host, &vm_path(&config.uuid));
}

fn remove_tree(host: &Host, path: &str) {
    match host.store.with(|server| server.remove(path)) {
        // Not there, nor the node above: a domain without such devices.
        Ok(()) | Err(XsError::ENOENT) => {}
        Err(error) => log::warn!("xenstore: {path} stays: {}", XsText(error)),
    }
}

/// An error of the store, as text.
pub struct XsText(pub XsError);

impl core::fmt::Display for XsText {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
