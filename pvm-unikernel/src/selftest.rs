//! `selftest` on the command line.
use crate::boot::BootInfo;
use crate::log::announce;
pub async fn run(_boot: &BootInfo) {
    crate::time::sleep(core::time::Duration::from_millis(50)).await;
    announce(format_args!("selftest ok"));
}
