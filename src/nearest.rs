//! "Did you mean …?"

/// How alike two names must be for the one to be offered for the other.
const ALIKE: f64 = 0.7;

/// The nearest of the known names as the end of a sentence: ``; did you mean `x`?``, or nothing where none is near.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match nearest(name, known, ALIKE) {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => String::new(),
    }
}

/// The nearest of the known names, where one is alike enough.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>, alike: f64) -> Option<&'a str> {
    let nearest = known
        .map(|k| (strsim::jaro_winkler(name, k), k))
        .filter(|(how, _)| *how >= alike)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    Some(nearest?.1)
}
