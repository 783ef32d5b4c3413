use super::*;

fn revision(id: &str, down: &[&str]) -> Revision {
    Revision {
        id: id.into(),
        down: down.iter().map(|s| (*s).into()).collect(),
        depends_on: Vec::new(),
        label: String::new(),
        file: None,
        down_file: None,
        checksum: None,
        resumes: Vec::new(),
    }
}

#[test]
fn no_revision_has_the_name_of_a_target() {
    for id in ["head", "heads", "base", "+1", "-2"] {
        let history = History::new(vec![revision(id, &[])], LedgerForm::Heads);
        assert!(matches!(history, Err(HistoryError::Broken(_))), "{id}");
    }
    History::new(vec![revision("head-1", &[])], LedgerForm::Heads).expect("a history");
}

#[test]
fn a_half_done_revision_waits_for_a_person_unless_the_way_takes_it_up() {
    let resumes = |directions: &[Direction]| Revision {
        resumes: directions.to_vec(),
        ..revision("2", &["1"])
    };
    let stuck = |directions: &[Direction], direction, rows: &[&str], pending: &[&str]| {
        let history = History::new(vec![revision("1", &[]), resumes(directions)], LedgerForm::Applied);
        let ledger = Ledger {
            half: Some("2".into()),
            revisions: rows.iter().map(|r| (*r).into()).collect(),
        };
        let pending: Vec<String> = pending.iter().map(|r| (*r).into()).collect();
        history
            .expect("a history")
            .stuck(direction, &pending, &ledger)
            .is_some()
    };
    let (up, down) = (Direction::Upgrade, Direction::Downgrade);
    assert!(stuck(&[], up, &["1"], &["2"]));
    assert!(!stuck(&[up], up, &["1"], &["2"]));
    assert!(stuck(&[up], up, &["1"], &[]), "not by a run that stops before it");
    assert!(
        stuck(&[up, down], down, &["1"], &["1"]),
        "not by one that goes the other way"
    );
    assert!(!stuck(&[down], down, &["1", "2"], &["2"]));
    assert!(stuck(&[up, down], up, &["1", "2"], &[]));
}

/// As Alembic has it: whoever depends on a revision comes behind it, and stays when what follows that is undone.
#[test]
fn what_a_revision_depends_on_is_not_what_it_follows() {
    let depending = |id: &str, down: &[&str], on: &str| Revision {
        depends_on: vec![on.into()],
        ..revision(id, down)
    };
    let revisions = vec![
        revision("a1", &[]),
        revision("a2", &["a1"]),
        depending("b1", &[], "a1"),
        revision("b2", &["b1"]),
    ];
    let history = History::new(revisions, LedgerForm::Heads).expect("a history");
    let at = |rows: &[&str]| Ledger {
        half: None,
        revisions: rows.iter().map(|r| (*r).to_owned()).collect(),
    };
    let ids = |direction, target: Option<&str>, ledger: &Ledger| {
        let pending = history.pending(direction, target, ledger).expect("a way");
        pending.into_iter().map(|r| r.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(Direction::Upgrade, Some("b1"), &at(&[])), ["a1", "b1"]);
    assert_eq!(ids(Direction::Downgrade, Some("a1"), &at(&["a2", "b1"])), ["a2"]);
    assert_eq!(ids(Direction::Downgrade, Some("a1"), &at(&["b1"])), [""; 0]);
    assert_eq!(
        ids(Direction::Downgrade, None, &at(&["a2", "b2"])),
        ["b2", "b1", "a2", "a1"]
    );

    let revisions = vec![
        revision("b1", &[]),
        revision("a1", &[]),
        depending("a2", &["a1"], "b1"),
    ];
    let history = History::new(revisions, LedgerForm::Heads).expect("a history");
    let down = history.resolve(&Target::Relative(-1), &at(&["a2"]));
    assert_eq!(down, Ok(Some("a1".into())));
}

fn line(ids: &[&str], form: LedgerForm) -> History {
    let revisions = ids
        .iter()
        .enumerate()
        .map(|(i, id)| revision(id, if i == 0 { &[] } else { &ids[i - 1..i] }));
    History::new(revisions.collect(), form).expect("a line is a history")
}

fn ledger(ids: &[&str]) -> Ledger {
    Ledger {
        half: None,
        revisions: ids.iter().map(|s| (*s).into()).collect(),
    }
}

#[test]
fn a_row_that_another_builds_on_does_not_belong_beside_it() {
    let h = line(&["a", "b", "c"], LedgerForm::Heads);
    let overlap = HistoryError::Overlap {
        below: "a".into(),
        above: "c".into(),
    };
    let both = ledger(&["a", "c"]);
    assert_eq!(h.standing(Direction::Upgrade, Some("c"), &both), Err(overlap));
    assert_eq!(h.describe(&both).as_deref(), Some("a,c"));
    let h = line(&["a", "b", "c"], LedgerForm::Applied);
    assert_eq!(
        h.standing(Direction::Upgrade, Some("c"), &both),
        Ok(Standing::Behind)
    );
}

#[test]
fn a_target_is_found_by_id_prefix_number_and_step() {
    let h = line(&["ab1", "ab2", "c3"], LedgerForm::Heads);
    let at = |t: &str, l: &[&str]| h.resolve(&t.parse().expect("target"), &ledger(l));
    assert_eq!(at("head", &[]), Ok(Some("c3".into())));
    assert_eq!(at("base", &["c3"]), Ok(None));
    assert_eq!(at("c", &[]), Ok(Some("c3".into())));
    assert_eq!(at("+2", &["ab1"]), Ok(Some("c3".into())));
    assert_eq!(at("+9", &["ab1"]), Ok(Some("c3".into())));
    assert_eq!(at("+1", &[]), Ok(Some("ab1".into())));
    assert_eq!(at("-1", &["ab1"]), Ok(None));
    assert_eq!(at("-2", &["c3"]), Ok(Some("ab1".into())));
    assert!(matches!(at("ab", &[]), Err(HistoryError::AmbiguousTarget { .. })));
    assert!(matches!(at("zz", &[]), Err(HistoryError::UnknownTarget(_))));
    assert!(matches!(at("+1", &["gone"]), Err(HistoryError::UnknownLedger(_))));
    for (target, found) in [
        ("head-1", Some("ab2")),
        ("head-9", None),
        ("heads+1", Some("c3")),
        ("base+2", Some("ab2")),
        ("c-1", Some("ab2")),
        ("ab1+1", Some("ab2")),
    ] {
        assert_eq!(at(target, &["c3"]), Ok(found.map(str::to_owned)), "{target}");
    }
    for wrong in ["zz+1", "head-0", "head-", "head-x", "head@1"] {
        let unknown = Err(HistoryError::UnknownTarget(wrong.into()));
        assert_eq!(at(wrong, &[]), unknown, "{wrong}");
    }
    // A name counts for more than what it looks like.
    let dated = line(&["2024-1", "2024-02", "2025"], LedgerForm::Heads);
    let at = |name: &str| dated.resolve(&Target::Revision(name.into()), &ledger(&[]));
    assert_eq!(at("2024-1"), Ok(Some("2024-1".into())));
    assert_eq!(at("2024-02-1"), Ok(Some("2024-1".into())));
    assert_eq!(at("202-1"), Err(HistoryError::UnknownTarget("202-1".into())));
    assert_eq!(at("2025-1"), Ok(Some("2024-02".into())));
    let numbered = line(&["1", "2", "10"], LedgerForm::Applied);
    assert_eq!(
        numbered.resolve(&Target::Revision("0010-1".into()), &ledger(&[])),
        Ok(Some("2".into()))
    );
    assert_eq!(
        numbered.resolve(&Target::Revision("0002".into()), &ledger(&[])),
        Ok(Some("2".into()))
    );
    // sqlx's word for the base, unless there is such a version.
    let zero = |history: &History| history.resolve(&Target::Revision("0".into()), &ledger(&["1"]));
    assert_eq!(zero(&numbered), Ok(None));
    assert_eq!(
        zero(&line(&["0", "1"], LedgerForm::Applied)),
        Ok(Some("0".into()))
    );
    assert!(matches!(
        zero(&line(&["a"], LedgerForm::Heads)),
        Err(HistoryError::UnknownTarget(_))
    ));
}

#[test]
fn without_a_list_only_equality_counts() {
    let h = History::opaque();
    let at = |t: &str| h.resolve(&t.parse().expect("target"), &ledger(&["v1"]));
    assert_eq!(at("v2"), Ok(Some("v2".into())));
    assert_eq!(at("base"), Ok(None));
    assert_eq!(at("v2-1"), Ok(Some("v2-1".into())));
    assert_eq!(at("head"), Err(HistoryError::NotListed("head".into())));
    assert_eq!(at("head-1"), Err(HistoryError::NotListed("head-1".into())));
    assert_eq!(at("-1"), Err(HistoryError::NotListed("-1".into())));
    let standing = |d, t, l: &[&str]| h.standing(d, t, &ledger(l)).expect("nothing is unknown");
    assert_eq!(
        standing(Direction::Upgrade, Some("v1"), &["v1"]),
        Standing::AtTarget
    );
    assert_eq!(
        standing(Direction::Upgrade, Some("v2"), &["v1"]),
        Standing::Behind
    );
    assert_eq!(
        standing(Direction::Upgrade, Some("v2"), &[]),
        Standing::NeverMigrated
    );
    assert_eq!(standing(Direction::Downgrade, None, &[]), Standing::AtTarget);
    assert_eq!(standing(Direction::Downgrade, None, &["v1"]), Standing::Behind);
    assert_eq!(h.describe(&ledger(&["v1"])), Some("v1".into()));
}

#[test]
fn two_heads_are_named() {
    let h = History::new(
        vec![revision("a", &[]), revision("b", &["a"]), revision("c", &["a"])],
        LedgerForm::Heads,
    );
    let h = h.expect("a fork is a history");
    assert_eq!(
        h.resolve(&Target::Head, &ledger(&[])),
        Err(HistoryError::SeveralHeads(vec!["b".into(), "c".into()]))
    );
    assert!(matches!(
        h.resolve(&Target::Relative(1), &ledger(&["a"])),
        Err(HistoryError::AmbiguousStep(1, _))
    ));
    assert_eq!(h.current(&ledger(&["b", "c"])), Ok(vec!["b".into(), "c".into()]));
}

#[test]
fn pending_goes_up_and_down_and_fills_gaps() {
    let h = line(&["1", "2", "3"], LedgerForm::Applied);
    let ids = |d, t: Option<&str>, l: &[&str]| -> Vec<String> {
        h.pending(d, t, &ledger(l))
            .expect("known")
            .iter()
            .map(|r| r.id.clone())
            .collect()
    };
    assert_eq!(ids(Direction::Upgrade, Some("3"), &["1", "3"]), ["2"]);
    assert_eq!(ids(Direction::Upgrade, Some("2"), &["1", "2", "3"]), [""; 0]);
    assert_eq!(ids(Direction::Downgrade, Some("1"), &["1", "2", "3"]), ["3", "2"]);
    assert_eq!(ids(Direction::Downgrade, None, &["1"]), ["1"]);
    assert_eq!(
        h.standing(Direction::Upgrade, Some("3"), &ledger(&[])),
        Ok(Standing::NeverMigrated)
    );
    assert_eq!(
        h.standing(Direction::Downgrade, Some("3"), &ledger(&["1"])),
        Ok(Standing::AtTarget)
    );
    assert_eq!(h.describe(&ledger(&["1", "3"])), Some("3".into()));
}
