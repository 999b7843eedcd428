//! The `headwater` binary: parse, build, run, exit code.

mod cli;

use std::process::ExitCode;

/// Thousands of small allocations live as long as their connections. This allocator packs them without a header each,
/// and gives memory back to the system when the connections have gone; glibc's keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(refusal) => return refusal.report(),
    };
    let runtime = match cli::runtime(&command) {
        Ok(runtime) => runtime,
        Err(e) => return cli::Failure::internal(e).report(),
    };
    let result = runtime.block_on(cli::run(command));
    // A read from a terminal cannot be cancelled; dropping the runtime would wait for it.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
