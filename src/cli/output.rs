//! Standard output, line by line.
//!
//! Invariant: a reader that went away (`headwater tail a | head -1`) ends the command cleanly and in silence.

use std::io::{self, Write};

use super::{Exit, Failure};

/// Writes a line and flushes it, so that a pipe sees it now.
pub(super) fn line(out: &mut impl Write, text: &str) -> Result<(), Failure> {
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(Exit::Clean),
        _ => Failure::internal(anyhow::Error::new(e).context("cannot write the output")),
    })
}

/// Replaces what would control a terminal. Line breaks and tabs stay.
pub(super) fn printable(text: &str) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_ends_cleanly_and_in_silence() {
        let failure = line(&mut Closed, "x").unwrap_err();
        assert_eq!((failure.exit, failure.message.is_none()), (Exit::Clean, true));
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\n\tc\r"), "a\u{fffd}[31mb\n\tc\u{fffd}");
    }
}
