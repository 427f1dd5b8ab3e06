//! Which policy an agent begins with. Pure.

/// What the start finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The `--policy` file's text, or why it could not be read; `None` where there is none and nobody named one.
    pub file: Option<Result<String, String>>,
    /// The file's text when it was last taken over.
    pub taken_over: Option<String>,
    /// The current revision and its text.
    pub current: Option<(u32, String)>,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Take up this revision as it is: the kernel holds it already, or should.
    pub adopt: Option<(u32, String)>,
    /// Then apply this text as a new revision.
    pub apply: Option<String>,
    /// Say this in the log and in the status.
    pub problem: Option<String>,
}

/// Decides. A file that is as it was when it was taken over undoes nothing that was applied after it: a restart changes no
/// verdict.
pub fn decide(found: Found) -> Start {
    let Found { file, taken_over, current } = found;
    let (apply, problem) = match file {
        None => (None, None),
        Some(Err(why)) => (None, Some(why)),
        Some(Ok(text)) => {
            let enforced = current.as_ref().is_some_and(|(_, current)| *current == text);
            let old = current.is_some() && taken_over.as_ref() == Some(&text);
            ((!enforced && !old).then_some(text), None)
        }
    };
    Start { adopt: current, apply, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(file: Option<Result<&str, &str>>, taken_over: Option<&str>, current: Option<&str>) -> Start {
        decide(Found {
            file: file.map(|f| f.map(str::to_owned).map_err(str::to_owned)),
            taken_over: taken_over.map(str::to_owned),
            current: current.map(|text| (3, text.to_owned())),
        })
    }

    #[test]
    fn what_a_start_does() {
        let of = |s: Start| (s.adopt.is_some(), s.apply.is_some(), s.problem.is_some());
        for (name, start, expected) in [
            ("nothing anywhere", start(None, None, None), (false, false, false)),
            ("first start with a file", start(Some(Ok("a")), None, None), (false, true, false)),
            ("no file, a state", start(None, None, Some("a")), (true, false, false)),
            ("the file is in force", start(Some(Ok("a")), Some("a"), Some("a")), (true, false, false)),
            ("the file has changed", start(Some(Ok("b")), Some("a"), Some("a")), (true, true, false)),
            (
                "another was applied after the file",
                start(Some(Ok("a")), Some("a"), Some("c")),
                (true, false, false),
            ),
            ("the state lost its policy", start(Some(Ok("a")), Some("a"), None), (false, true, false)),
            (
                "an unreadable file, a state",
                start(Some(Err("no")), Some("a"), Some("a")),
                (true, false, true),
            ),
            ("an unreadable file, no state", start(Some(Err("no")), None, None), (false, false, true)),
        ] {
            assert_eq!(of(start), expected, "{name}");
        }
    }
}
