//! The few colours, each with one meaning.

use anstyle::{AnsiColor, Style};

/// It failed, and somebody should look.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// It is not as it should be, and we went on.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// It went well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// What to type next.
pub(crate) const HINT: Style = AnsiColor::Cyan.on_default().bold();
/// Of no interest, most of the time.
pub(crate) const DIM: Style = Style::new().dimmed();
/// A heading.
pub(crate) const STRONG: Style = Style::new().bold();
