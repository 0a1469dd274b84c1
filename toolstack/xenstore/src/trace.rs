//! What the server writes to the log about each step, when somebody asks for it.

use alloc::string::String;
use core::fmt::Write as _;
use xen_abi::io::xs_wire::XsError;

/// The switches, in xenstored's names.
const NAMES: [&str; 5] = ["obj", "io", "wrl", "acc", "tdb"];
const IO: u8 = 1;

/// Which kinds of steps are logged, and whether any is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    on: bool,
    kinds: u8,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            on: false,
            kinds: 0b11,
        }
    }
}

impl Trace {
    /// `on`, `off`, `+io`, `-io`, ….
    pub(crate) fn switch(&mut self, word: &str) -> Result<(), XsError> {
        let bit = |name: &str| NAMES.iter().position(|other| *other == name);
        match (word, word.split_at_checked(1)) {
            ("on", _) => self.on = true,
            ("off", _) => self.on = false,
            (_, Some(("+", name))) => self.kinds |= 1 << bit(name).ok_or(XsError::EINVAL)?,
            (_, Some(("-", name))) => self.kinds &= !(1 << bit(name).ok_or(XsError::EINVAL)?),
            _ => return Err(XsError::EINVAL),
        }
        Ok(())
    }

    pub(crate) fn settings(&self) -> String {
        let mut text = String::from("Log switch settings:\n");
        for (bit, name) in NAMES.iter().enumerate() {
            let state = if self.kinds & (1 << bit) == 0 {
                "off"
            } else {
                "on"
            };
            writeln!(text, "{name:<8}: {state}").expect("a string takes all");
        }
        text
    }

    /// Whether packets are logged.
    pub(crate) fn io(&self) -> bool {
        self.on && self.kinds & (1 << IO) != 0
    }
}
