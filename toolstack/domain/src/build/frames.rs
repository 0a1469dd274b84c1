//! Machine frames of a PV guest.

use alloc::vec::Vec;

/// Guest frames that are contiguous in the machine, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    pfn: u64,
    mfn: u64,
    pages: u64,
}

/// Which machine frame each guest frame is: in runs, as a list of all frames would
/// cost 2 MiB for each GiB of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MachineFrames {
    runs: Vec<Run>,
}

impl MachineFrames {
    /// Adds the next frames; `pfn` must follow what is there.
    pub(super) fn push(&mut self, pfn: u64, mfn: u64, pages: u64) {
        if let Some(last) = self.runs.last_mut()
            && last.pfn + last.pages == pfn
            && last.mfn + last.pages == mfn
        {
            last.pages += pages;
            return;
        }
        self.runs.push(Run { pfn, mfn, pages });
    }

    /// The machine frame of a guest frame.
    pub(super) fn get(&self, pfn: u64) -> Option<u64> {
        let after = self.runs.partition_point(|run| run.pfn <= pfn);
        let run = &self.runs[after.checked_sub(1)?];
        (pfn - run.pfn < run.pages).then(|| run.mfn + (pfn - run.pfn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_frames_merge_and_all_are_found() {
        let mut frames = MachineFrames::default();
        frames.push(0, 1000, 512);
        frames.push(512, 1512, 512);
        frames.push(1024, 7, 1);
        frames.push(1025, 6, 1);
        assert_eq!(frames.runs.len(), 3);
        assert_eq!(frames.get(0), Some(1000));
        assert_eq!(frames.get(1023), Some(2023));
        assert_eq!(frames.get(1024), Some(7));
        assert_eq!(frames.get(1025), Some(6));
        assert_eq!(frames.get(1026), None);
    }
}
