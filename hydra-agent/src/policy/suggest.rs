//! "Did you mean": the known name that an unknown one was probably meant to be.

/// The nearest of `names`, if it is near enough to be worth saying: at most a third of the letters differ.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 4);
    names
        .into_iter()
        .filter(|known| known.len().abs_diff(name.len()) <= 8)
        .map(|known| (distance(name, known), known))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, known)| known)
}

/// Edits between two names: insertions, deletions, replacements, and neighbours that changed places.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().take(64).flat_map(char::to_lowercase).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (last[j - 1] + cost).min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["databases", "ai-services", "apps", "infra"];
        assert_eq!(nearest("database", names), Some("databases"));
        assert_eq!(nearest("ia-services", names), Some("ai-services"));
        assert_eq!(nearest("app", names), Some("apps"));
        assert_eq!(nearest("Infra", names), Some("infra"));
        assert_eq!(nearest("monitoring", names), None);
        assert_eq!(nearest("", names), None);
    }
}
