//! Loading a kernel's segments.

use super::image::ImageSource;
use super::memory::Memory;
use super::{BuildError, PAGE};
use crate::config::GuestConfig;
use crate::hypercalls::Hypercalls;

/// Writes the segments (checked to be in order and apart) at their `p_paddr` less
/// `offset`, and zeroes where they have no bytes in the file: also between them, and
/// to both ends of their pages.
pub(super) async fn load_kernel<H: Hypercalls, S: ImageSource>(
    memory: &Memory<'_, H>,
    config: &GuestConfig,
    offset: u64,
    images: &mut S,
) -> Result<(), BuildError> {
    let kernel = &config.kernel;
    let mut written = None;
    for segment in kernel.segments.iter().filter(|s| s.mem_size > 0) {
        let start = segment.paddr - offset;
        let gap = written.unwrap_or(start / PAGE * PAGE);
        memory.zero(gap, start - gap).await?;
        memory
            .stream(
                start,
                images,
                kernel.image,
                segment.offset,
                segment.file_size,
            )
            .await?;
        let filled = start + segment.file_size;
        let end = start + segment.mem_size;
        memory.zero(filled, end - filled).await?;
        written = Some(end);
    }
    if let Some(end) = written {
        memory.zero_rest_of_page(end).await?;
    }
    Ok(())
}
