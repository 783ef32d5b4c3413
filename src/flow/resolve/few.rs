//! Lists that a person reads to their end.

/// How many complaints of a kind are printed. Whoever forgot a column does not want to read it 10,000 times.
pub(super) const SHOWN: usize = 5;

/// The first few of many, and how many there are.
#[derive(Default)]
pub(super) struct Few {
    first: Vec<String>,
    pub(super) count: usize,
}

impl Few {
    pub(super) fn push(&mut self, text: impl FnOnce() -> String) {
        if self.first.len() < SHOWN {
            self.first.push(text());
        }
        self.count += 1;
    }

    pub(super) fn list(self) -> Vec<String> {
        first_few(self.first, self.count)
    }
}

pub(super) fn first_few(mut first: Vec<String>, count: usize) -> Vec<String> {
    if count > first.len() {
        first.push(format!("and {} more", count - first.len()));
    }
    first
}
