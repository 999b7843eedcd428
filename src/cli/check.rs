//! `headwater check`: prints the configuration in effect, once it is known to be valid.

use std::io;

use headwater::config::Config;

use super::{Failure, output};

/// Prints TOML that can be used as a configuration file, but for the secrets.
pub(super) fn run(config: &Config) -> Result<(), Failure> {
    output::line(&mut io::stdout(), config.to_toml().trim_end())
}
