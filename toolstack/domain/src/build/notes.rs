//! What a kernel's ELF notes say, as numbers.

use super::BuildError;
use crate::config::Kernel;
use xen_abi::elfnote;

impl Kernel {
    /// A numeric note: little-endian, 1 to 8 bytes.
    pub(super) fn number(&self, note: u32) -> Result<Option<u64>, BuildError> {
        let Some((_, value)) = self.notes.iter().find(|(kind, _)| *kind == note) else {
            return Ok(None);
        };
        if value.is_empty() || value.len() > 8 {
            return Err(BuildError::BadNote(note));
        }
        let mut bytes = [0; 8];
        bytes[..value.len()].copy_from_slice(value);
        Ok(Some(u64::from_le_bytes(bytes)))
    }

    /// A text note.
    fn text(&self, note: u32) -> Option<&[u8]> {
        let (_, value) = self.notes.iter().find(|(kind, _)| *kind == note)?;
        // The CLI takes the final NUL away; be indifferent to it.
        Some(value.strip_suffix(&[0]).unwrap_or(value))
    }

    /// Whether bit `feature` is set in the note of supported features.
    pub(super) fn supports(&self, feature: u32) -> Result<bool, BuildError> {
        let bits = self.number(elfnote::SUPPORTED_FEATURES)?.unwrap_or(0);
        Ok(bits >> feature & 1 != 0)
    }

    /// Whether it demands auto-translated memory: `FEATURES` is a list of names with `|`
    /// between them, and `!` before what is demanded.
    pub(super) fn requires_auto_translation(&self) -> bool {
        self.text(elfnote::FEATURES).is_some_and(|names| {
            names
                .split(|&byte| byte == b'|')
                .any(|name| name == b"!auto_translated_physmap")
        })
    }

    /// Whether the RSDP may lie anywhere, or must be where the BIOS would have it: old
    /// Linux kernels look only there.
    pub(super) fn rsdp_anywhere(&self) -> Result<bool, BuildError> {
        Ok(self.text(elfnote::GUEST_OS) != Some(b"linux")
            || self.supports(elfnote::XENFEAT_LINUX_RSDP_UNRESTRICTED)?)
    }
}
