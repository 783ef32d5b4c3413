//! A trace context, as W3C's `traceparent` writes it: what joins the attempts of all workers to whoever made the run.

use std::{
    fmt,
    num::{NonZeroU64, NonZeroU128},
    str::FromStr,
};

/// A position in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: NonZeroU128,
    /// The span that what follows is a child of.
    pub span_id: NonZeroU64,
    /// Whether its spans are kept: workers do as the maker of the run did.
    pub sampled: bool,
}

impl TraceContext {
    /// The trace's id as logs and tracing tools write it.
    pub fn trace(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            span_id,
            sampled,
        } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(*sampled))
    }
}

impl FromStr for TraceContext {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| "it is no W3C traceparent".into())
    }
}

fn parse(text: &str) -> Option<TraceContext> {
    let mut parts = text.trim().split('-');
    let version = hex(parts.next()?, 2)?;
    let context = TraceContext {
        trace_id: NonZeroU128::new(hex(parts.next()?, 32)?)?,
        span_id: NonZeroU64::new(u64::try_from(hex(parts.next()?, 16)?).ok()?)?,
        sampled: hex(parts.next()?, 2)? & 1 == 1,
    };
    // Version 0 has four parts; a later one may have more after them, and 255 is none.
    let more = parts.next().is_some();
    (version != 0xff && !(version == 0 && more)).then_some(context)
}

fn hex(part: &str, digits: usize) -> Option<u128> {
    let fits = part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(part, 16).ok().filter(|_| fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-0000000000000000000000000000000a-000000000000000b-00",
        ] {
            assert_eq!(
                text.parse::<TraceContext>().map(|t| t.to_string()),
                Ok(text.into())
            );
        }
    }

    #[test]
    fn a_later_version_may_say_more() {
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09-what-ever";
        let read: TraceContext = later.parse().expect("a context");
        assert!(read.sampled);
        assert_eq!(read.trace(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(text.parse::<TraceContext>().is_err(), "{text}");
        }
    }
}
