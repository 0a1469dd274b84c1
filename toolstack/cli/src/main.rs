//! `closer`: creates, watches and ends the guests of Closer hosts. See `closer help`.
#![forbid(unsafe_code)]

mod args;
mod cleanup;
mod console;
mod create;
mod failure;
mod guests;
mod host;
mod host_file;
mod images;
mod keygen;
mod logs;
mod output;
mod results;
mod session;
mod transfer;
mod volumes;

use std::env;
use std::process::ExitCode;

use args::{Arguments, Command, Global};
use clap::Parser as _;
use failure::Failure;
use output::Format;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() && args::ask_for_json(env::args_os().skip(1)) => {
            return Failure::Usage(args::in_one_line(&error)).report(Format::Json);
        }
        // Prints help and usage errors for people; those end with 2, as xl's do.
        Err(error) => error.exit(),
    };
    match run(arguments.command, &arguments.global) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(arguments.global.format()),
    }
}

fn run(command: Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::Create(a) => create::run(&a, global),
        Command::List(a) => guests::list(&a, global),
        Command::Console(a) => console::run(&a, global),
        Command::Shutdown(a) => guests::shutdown(&a, global),
        Command::Reboot(a) => guests::reboot(&a, global),
        Command::Destroy(a) => guests::destroy(&a.guests, global),
        Command::Pause(a) => guests::pause(&a.guests, global),
        Command::Unpause(a) => guests::unpause(&a.guests, global),
        Command::Rename(a) => guests::rename(&a, global),
        Command::Domid(a) => guests::domid(&a.guest, global),
        Command::Domname(a) => guests::domname(a.domid, global),
        Command::Uptime(a) => guests::uptime(&a.guests, global),
        Command::Info => host::info(global),
        Command::Dmesg(a) => logs::dmesg(&a, global),
        Command::XenstoreLs(a) => logs::xenstore_ls(&a, global),
        Command::Volume(a) => volumes::run(&a, global),
        Command::Host(a) => host::power(&a, global),
        Command::Keygen(a) => keygen::keygen(&a, global),
        Command::Pubkey(a) => keygen::pubkey(&a, global),
        Command::Completions(a) => args::completions(&a, global),
        Command::Version => host::version(global),
    }
}
