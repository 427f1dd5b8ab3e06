//! What a crash, a full disk or a careless hand can do to the state directory.

use super::*;

fn view(revision: u32) -> RevisionView {
    RevisionView {
        restores: None,
        revision,
        policy: "hydra".into(),
        applied: "2026-11-21T00:00:00Z".into(),
        by: "--policy".into(),
        bytes: 3,
    }
}

fn begin(state: &mut State, revision: u32, text: &str) {
    let drafted = state.draft(revision)(text).unwrap();
    state.begin(drafted).unwrap();
}

fn apply(state: &mut State, text: &str) -> u32 {
    let revision = state.next_revision();
    begin(state, revision, text);
    state.commit(view(revision)).unwrap();
    revision
}

fn open(dir: &Path) -> (State, Vec<Broken>) {
    State::open(dir).unwrap()
}

fn numbers(n: u16) -> Numbers {
    let mut numbers = Numbers::default();
    numbers.identities.insert("databases".into(), n);
    numbers
}

#[test]
fn everything_comes_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut state, broken) = open(dir.path());
        assert!(state.fresh());
        assert_eq!(broken, []);
        assert_eq!(state.current(), None);
        state.set_numbers(numbers(7)).unwrap();
        let mut containers = state.containers().clone();
        assert_eq!(containers.number("one"), Container(1));
        state.set_containers(containers).unwrap();
        apply(&mut state, "one");
        apply(&mut state, "two");
    }
    let (state, broken) = open(dir.path());
    assert_eq!(broken, []);
    assert!(!state.fresh());
    assert_eq!(state.numbers(), &numbers(7));
    assert_eq!(state.containers().get("one"), Some(Container(1)));
    assert_eq!(state.current(), Some(2));
    assert_eq!(state.text(1).as_deref(), Some("one"));
    assert_eq!(state.text(2).as_deref(), Some("two"));
    assert_eq!(state.history().iter().map(|r| r.revision).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn two_agents_on_one_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let second = State::open(dir.path());
    let Err(StateError::Locked { pid, .. }) = second else { panic!("not refused") };
    assert_eq!(pid, Some(std::process::id()));
    drop(first);
    State::open(dir.path()).unwrap();
}

#[test]
fn every_truncation_of_every_file_is_said_and_forgets_no_policy() {
    for file in ["numbers.json", "containers.json", "history.json", "current"] {
        let whole = {
            let dir = tempfile::tempdir().unwrap();
            let (mut state, _) = open(dir.path());
            populate(&mut state);
            fs::read(dir.path().join(file)).unwrap()
        };
        for length in 0..whole.len().min(40) {
            let dir = tempfile::tempdir().unwrap();
            populate(&mut open(dir.path()).0);
            fs::write(dir.path().join(file), &whole[..length]).unwrap();
            let (state, broken) = open(dir.path());
            let said = broken.iter().any(|b| b.path.ends_with(file));
            // One newline less of `current` is still a number.
            assert!(said || (file == "current" && length == 1), "{file} cut to {length} bytes: {broken:?}");
            assert_eq!(state.text(state.current().unwrap()).as_deref(), Some("two"), "{file} {length}");
            assert_eq!(state.next_revision(), 3, "{file} cut to {length} bytes");
            assert_eq!(state.numbers(), &numbers(if file == "numbers.json" { 7 } else { 8 }));
            assert!(state.history().iter().any(|r| r.revision == 1));
        }
    }
}

fn populate(state: &mut State) {
    for n in [7, 8] {
        state.set_numbers(numbers(n)).unwrap();
        let mut containers = state.containers().clone();
        containers.number(&format!("key-{n}"));
        state.set_containers(containers).unwrap();
        state.flush_containers().unwrap();
        apply(state, if n == 7 { "one" } else { "two" });
    }
}

#[test]
fn a_write_that_died_halfway_leaves_the_old_version() {
    let dir = tempfile::tempdir().unwrap();
    populate(&mut open(dir.path()).0);
    fs::write(dir.path().join("numbers.json.new"), "{\"identi").unwrap();
    fs::write(dir.path().join("policies/3.yaml.new"), "vers").unwrap();
    let (state, broken) = open(dir.path());
    assert_eq!(broken, []);
    assert_eq!(state.numbers(), &numbers(8));
    assert!(!dir.path().join("numbers.json.new").exists());
    assert!(!dir.path().join("policies/3.yaml.new").exists());
}

#[test]
fn a_text_that_is_not_applied_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    populate(&mut state);
    let drafted = state.draft(3)("three").unwrap();
    assert!(dir.path().join("policies/3.yaml.new").exists());
    assert_eq!((state.next_revision(), state.current(), state.text(3)), (3, Some(2), None));
    drop(drafted);
    assert!(!dir.path().join("policies/3.yaml.new").exists());
    begin(&mut state, 3, "instead");
    assert_eq!((state.current(), state.text(3).as_deref()), (Some(3), Some("instead")));
}

#[test]
fn container_numbers_are_never_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let first = {
        let (mut state, _) = open(dir.path());
        let mut containers = state.containers().clone();
        let first = containers.number("gone");
        state.set_containers(containers.clone()).unwrap();
        containers.retain(|_| false);
        assert!(containers.number("other") > first);
        state.set_containers(containers).unwrap();
        first
    };
    // The second number was given but its list never flushed: the reservation covers it.
    let (state, _) = open(dir.path());
    let mut containers = state.containers().clone();
    assert!(containers.number("third").0 > first.0 + 1);
}

#[test]
fn a_lost_list_of_containers_begins_above_every_number_it_can_have_given() {
    let dir = tempfile::tempdir().unwrap();
    populate(&mut open(dir.path()).0);
    fs::remove_file(dir.path().join("containers.json")).unwrap();
    let _ = fs::remove_file(dir.path().join("containers.json.previous"));
    let (state, _) = open(dir.path());
    assert!(state.containers().clone().number("new").0 > 100_000_000);
}

#[test]
fn a_policy_that_the_kernel_refused_is_not_current() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut state, _) = open(dir.path());
        apply(&mut state, "one");
        begin(&mut state, 2, "two");
        state.abandon(2, Some(1)).unwrap();
    }
    let (state, broken) = open(dir.path());
    assert_eq!(broken, []);
    assert_eq!(state.current(), Some(1));
    assert_eq!(state.text(2), None);
}

#[test]
fn a_missing_text_falls_back_to_the_newest_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    populate(&mut open(dir.path()).0);
    fs::remove_file(dir.path().join("policies/2.yaml")).unwrap();
    let (state, broken) = open(dir.path());
    assert_eq!(state.current(), Some(1));
    assert_eq!(broken[0].why, "revision 2 has no text in `policies`; revision 1 is taken");
}

#[test]
fn history_is_bounded_and_its_texts_go_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, _) = open(dir.path());
    state.history = (1..=KEPT_REVISIONS as u32).map(view).collect();
    fs::write(dir.path().join("policies/1.yaml"), "old").unwrap();
    begin(&mut state, KEPT_REVISIONS as u32 + 1, "new");
    state.commit(view(KEPT_REVISIONS as u32 + 1)).unwrap();
    assert_eq!(state.history().len(), KEPT_REVISIONS);
    assert_eq!(state.text(1), None);
    assert_eq!(state.text(KEPT_REVISIONS as u32 + 1).as_deref(), Some("new"));
}

#[test]
fn the_directory_is_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/b");
    let (mut state, _) = open(&dir);
    apply(&mut state, "one");
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(dir.join("policies/1.yaml")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_unwritable_place_is_an_error_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = State::open(&file).unwrap_err().to_string();
    assert!(error.contains("the state directory `") && error.contains("/file` cannot be used: "), "{error}");
}
