//! Addresses that may mean more than one array, of which one changed: where one ends and another begins, and what position-dependent code
//! adds an index to that nobody knows. With symbols: without them nothing says that two arrays are there.

use std::process::Command;

use hp_diff::{Code, Level, Options};

/// Errors by code and subject where `keep` is this function and an element of `rates` changes.
fn errors(keep: &str) -> Vec<(Code, String)> {
    errors_with(keep, &["-O1"])
}

fn errors_with(keep: &str, flags: &[&str]) -> Vec<(Code, String)> {
    let directory = tempfile::tempdir().unwrap();
    let source = format!(
        "#ifdef OLD
        #define LAST 7
        #else
        #define LAST 207
        #endif
        const int rates[8] = {{2, 7, 1, 8, 2, 8, 1, LAST}};
        const int last[8] = {{70, 71, 72, 73, 74, 75, 76, 77}};
        const int *volatile kept;
        {keep}
        int rate(int n) {{ return rates[n & 7]; }}
        int main(int count, char **words) {{ (void)words; keep(count); return rate(count) + last[count & 7]; }}"
    );
    std::fs::write(directory.path().join("code.c"), source).unwrap();
    let build = |name: &str, version: &str| {
        let mut gcc = Command::new("gcc");
        gcc.args(flags).args(["-g", "-fno-toplevel-reorder", "-Wl,--build-id", version, "code.c", "-o", name]);
        assert!(gcc.current_dir(directory.path()).status().unwrap().success(), "gcc failed");
        directory.path().join(name)
    };
    let report = hp_diff::diff(&build("old", "-DOLD"), &build("new", "-DNEW"), &Options::default()).unwrap();
    let errors = report.findings.iter().filter(|f| f.level == Level::Error && !f.accepted);
    errors.map(|f| (f.code, f.subject.clone())).collect()
}

#[test]
fn an_end_that_is_kept_may_be_the_start_behind_it() {
    let ambiguous = vec![(Code::AmbiguousReference, "keep".to_owned())];
    assert_eq!(errors("__attribute__((noipa)) void keep(int n) { kept = rates + 8; }"), ambiguous);
    assert_eq!(errors("__attribute__((noipa)) void keep(int n) { kept = last; }"), ambiguous);
}

#[test]
fn what_code_reads_there_says_which_it_is() {
    let kept = "__attribute__((noipa)) void keep(int n)";
    assert_eq!(
        errors(&format!("{kept} {{ const int *p = last; asm(\"\" : \"+r\"(p)); kept = p; if (p[1] == n) kept = 0; }}")),
        []
    );
    assert_eq!(errors(&format!("{kept} {{ kept = last + n; }}")), []);
    // By the function that gets it.
    let reads = "__attribute__((noipa)) int first(const int *p) { return *p; }";
    assert_eq!(errors(&format!("{reads} {kept} {{ kept = n + first(last) ? 0 : &n; }}")), []);
}

#[test]
fn an_address_where_no_table_can_be_is_that_of_another_one() {
    let fixed = ["-O1", "-fno-pie", "-no-pie"];
    // In the headers or below the image, in code, and in the array before.
    for distance in [2000, 1000, 1] {
        let keep =
            format!("__attribute__((noipa)) void keep(int n) {{ kept = rates[(long)n - {distance}] ? 0 : &n; }}");
        let found = errors_with(&keep, &fixed);
        assert_eq!(found.first().map(|f| f.1.as_str()), Some("keep"), "{distance}: {found:?}");
    }
}
