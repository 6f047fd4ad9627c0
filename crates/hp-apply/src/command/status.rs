//! `status`: what each patched process has, read from the process alone.

use super::report::{Report, target};
use super::{Args, Exit, clean, lives, unseen};
use crate::failure::Failure;
use crate::prelude::*;
use crate::{LedgerEntry, Phase, process};

pub(super) fn run(args: &Args<'_>, report: &mut Report) -> Result<Exit, Failure> {
    let asked = !args.pids.is_empty();
    let pids = if asked { args.pids.clone() } else { crate::patched_processes()? };
    let mut any = false;
    for pid in pids {
        let result = crate::status(pid);
        // It ended after it had been found.
        if !asked && result.is_err() && !lives(pid) {
            continue;
        }
        any = true;
        let target = target(&process::comm(pid), pid);
        match result {
            Err(error) => {
                report.ended(Exit::of_error(&error));
                report.error(&format!("{target}: {}", clean(error.to_string().as_bytes())));
            }
            Ok(patches) if patches.is_empty() => {
                report.ended(Exit::Nothing);
                if asked {
                    report.error(&format!("{target}: not patched"));
                }
            }
            Ok(patches) => {
                report.ended(Exit::Done);
                print(report, &target, &patches);
            }
        }
    }
    if !any {
        report.nothing(&format!("no process is patched{}", unseen()));
    }
    Ok(report.exit())
}

fn print(report: &Report, target: &str, patches: &[LedgerEntry]) {
    let patched = if patches.len() == 1 { "1 patch".to_owned() } else { format!("{} patches", patches.len()) };
    report.line(&format!("{target}: {patched}"));
    for patch in patches {
        let (id, name, base) = (&patch.id, clean(patch.name.as_bytes()), clean(patch.base_path.as_bytes()));
        let phase = if patch.phase == Phase::Active { "in effect" } else { "not in effect" };
        let since = date(patch.applied_at);
        report.line(&format!("  {name}  id {id}  {phase}  since {since}, by user {}", patch.uid));
        report.line(&format!("    base {base}, build ID {}", patch.build_id));
        for f in &patch.functions {
            let name = clean(f.name.as_bytes());
            report.line(&format!("    {name} {:#x} → {:#x}", f.old_address, f.new_address));
        }
        for damage in &patch.damage {
            report.line(&format!("    damaged {}", clean(damage.as_bytes())));
        }
    }
}

/// `2026-11-23 22:12:09 UTC`.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a date in the proleptic Gregorian calendar, in years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_704_067_199), "2023-12-31 23:59:59 UTC");
        assert!(!date(u64::MAX).is_empty());
    }
}
