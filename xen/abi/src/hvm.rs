//! `hvm/`: what concerns domains with hardware virtualisation.

pub mod params;
pub mod save;
pub mod start_info;
