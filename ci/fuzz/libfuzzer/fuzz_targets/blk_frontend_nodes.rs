#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("blk_frontend_nodes", data));
