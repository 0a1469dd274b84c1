//! Bytes of a disk whose controller is reset under somebody else's command.

mod recorder;

use backend_blk::BlockError;
use recorder::{Recorder, run};

#[test]
fn what_a_reset_of_the_disk_cut_off_is_done_again_once() {
    let disk = Recorder::new(1024, 512);
    run(async move {
        let io = disk.io();
        let mut read = [0; 512];
        disk.resets.set(1);
        io.write(8, &[7; 512]).await.unwrap();
        disk.resets.set(1);
        io.read(8, &mut read).await.unwrap();
        assert_eq!(read, [7; 512]);
        disk.resets.set(1);
        io.zero(8, 1).await.unwrap();
        disk.resets.set(1);
        io.flush().await.unwrap();
        io.read(8, &mut read).await.unwrap();
        assert_eq!(read, [0; 512]);
        // Not again and again: the disk may be dead.
        disk.resets.set(2);
        assert_eq!(io.read(8, &mut read).await, Err(BlockError::Reset));
        disk.resets.set(2);
        assert_eq!(io.write(8, &read).await, Err(BlockError::Reset));
        disk.resets.set(2);
        assert_eq!(io.zero(8, 1).await, Err(BlockError::Reset));
        disk.resets.set(2);
        assert_eq!(io.flush().await, Err(BlockError::Reset));
    });
}
