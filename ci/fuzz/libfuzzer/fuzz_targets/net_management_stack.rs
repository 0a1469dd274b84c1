#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("net_management_stack", data));
