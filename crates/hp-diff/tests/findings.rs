//! `docs/FINDINGS.md` says what the code says. Run with `UPDATE=1` to write it anew.

use hp_diff::Code;

fn rendered() -> String {
    let mut text = String::from(
        "# Findings\n\nA finding is a coded fact about two builds. An *error* means that no patch is made. Errors marked \
         *acceptable* can be accepted with\n`--allow CODE` or `--allow CODE=SUBJECT`; the acceptance is recorded in the \
         patch. The others cannot: without what they miss, there is no right patch.\n\nThis page is made from the table in \
         `crates/hp-diff/src/finding.rs`; `hp explain CODE` prints the same.\n\n| code | level | what | why, and what to \
         do |\n|---|---|---|---|\n",
    );
    for code in Code::ALL {
        let level = format!("{:?}", code.level()).to_lowercase();
        let level = if code.acceptable() { format!("{level}, acceptable") } else { level };
        text += &format!("| {code} | {level} | {} | {} |\n", code.title(), code.help());
    }
    text
}

#[test]
fn the_page_of_findings_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/FINDINGS.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, rendered()).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == rendered(), "docs/FINDINGS.md is out of date: run the test with UPDATE=1");
}

#[test]
fn codes_are_unique_and_ordered() {
    let codes: Vec<&str> = Code::ALL.iter().map(|c| c.as_str()).collect();
    assert!(codes.is_sorted() && codes.windows(2).all(|w| w[0] != w[1]), "{codes:?}");
}
