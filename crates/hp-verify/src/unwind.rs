//! Unwind rows, compared by what they mean at each instruction (LSB core specification, "Exception Frames";
//! DWARF 5, section 6.4), not by how they are written.

use std::collections::BTreeMap;
use std::fmt;

use crate::image::Image;
use gimli::{BaseAddresses, CfaRule, CieOrFde, EhFrame, LittleEndian, RegisterRule, UnwindContext, UnwindSection};

/// The rows of one range of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Length of the range in bytes.
    pub(crate) size: u64,
    /// Offset from which each row holds, and the row; neighbours differ.
    pub(crate) rows: Vec<(u64, Row)>,
    /// The frame is that of a signal handler's return.
    pub(crate) signal: bool,
    /// Number of the register that holds the return address.
    pub(crate) return_register: u16,
    /// Address of the personality routine, or of the word that holds it.
    pub(crate) personality: Option<gimli::Pointer>,
    /// Address of the exception table.
    pub(crate) exceptions: Option<u64>,
}

impl Rows {
    /// The row in force at an offset.
    pub(crate) fn at(&self, offset: u64) -> Option<&Row> {
        let i = self.rows.partition_point(|r| r.0 <= offset).checked_sub(1)?;
        (offset < self.size).then(|| &self.rows[i].1)
    }
}

/// The entries of an `.eh_frame` by the start of their range. Their rows are read where they are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Entries<'d> {
    frame: EhFrame<Slice<'d>>,
    bases: BaseAddresses,
    /// Where each entry lies in the section, and the length of its range.
    found: BTreeMap<u64, (usize, u64)>,
    /// What cannot be read.
    pub(crate) unread: Vec<String>,
}

impl<'d> Entries<'d> {
    /// The entries of a section that lies at `address`.
    pub(crate) fn read(address: u64, data: &'d [u8]) -> Entries<'d> {
        let frame = EhFrame::new(data, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(address);
        let (mut found, mut unread) = (BTreeMap::new(), Vec::new());
        let mut entries = frame.entries(&bases);
        loop {
            let partial = match entries.next() {
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(None) => break,
                Err(error) => {
                    unread.push(format!("the section ends in something else than entries ({error})"));
                    break;
                }
            };
            let offset = partial.offset();
            match partial.parse(EhFrame::cie_from_offset) {
                Ok(fde) => {
                    if found.insert(fde.initial_address(), (offset, fde.len())).is_some() {
                        unread.push(format!("two entries are for {:#x}", fde.initial_address()));
                    }
                }
                Err(error) => unread.push(format!("the entry at {offset:#x} cannot be read ({error})")),
            }
        }
        Entries { frame, bases, found, unread }
    }

    /// Those of a build.
    pub(crate) fn of_build(image: &Image<'d>) -> Entries<'d> {
        let section = image.sections.iter().find(|s| s.name == ".eh_frame");
        section.map_or_else(|| Entries::read(0, &[]), |s| Entries::read(s.address, s.data))
    }

    /// Start and length of each range.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.found.iter().map(|(start, (_, length))| (*start, *length))
    }

    /// There is an entry for the range that begins there, and it can be read.
    pub(crate) fn get(&self, start: u64) -> Option<Rows> {
        self.rows(start)?.ok()
    }

    /// The rows of the range that begins there, if it has an entry.
    pub(crate) fn rows(&self, start: u64) -> Option<Result<Rows, String>> {
        let (offset, _) = self.found.get(&start)?;
        let fde = self.frame.fde_from_offset(&self.bases, (*offset).into(), EhFrame::cie_from_offset);
        let rows = fde.and_then(|fde| rows(&self.frame, &self.bases, &fde));
        Some(rows.map_err(|error| format!("the entry at {offset:#x} cannot be read ({error})")))
    }

    /// All rows that can be read, by the start of their range.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u64, Result<Rows, String>)> {
        self.found.keys().filter_map(|start| Some((*start, self.rows(*start)?)))
    }
}

type Slice<'d> = gimli::EndianSlice<'d, LittleEndian>;

fn rows(
    frame: &EhFrame<Slice<'_>>,
    bases: &BaseAddresses,
    fde: &gimli::FrameDescriptionEntry<Slice<'_>>,
) -> gimli::Result<Rows> {
    let start = fde.initial_address();
    let mut context = UnwindContext::new();
    let mut table = fde.rows(frame, bases, &mut context)?;
    let mut rows: Vec<(u64, Row)> = Vec::new();
    while let Some(row) = table.next_row()? {
        let meaning = meaning(frame, row)?;
        // A later row for the same place replaces the earlier one.
        if row.start_address() < row.end_address() && rows.last().is_none_or(|last| last.1 != meaning) {
            rows.push((row.start_address() - start, meaning));
        }
    }
    let cie = fde.cie();
    Ok(Rows {
        size: fde.len(),
        rows,
        signal: cie.is_signal_trampoline(),
        return_register: cie.return_address_register().0,
        personality: cie.personality(),
        exceptions: fde.lsda().map(gimli::Pointer::pointer),
    })
}

/// What one row means: where the frame lies, and where each register of the caller is, by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    frame: Rule,
    registers: Vec<(u16, Rule)>,
    arguments: u64,
}

impl Row {
    /// The row once the stack pointer is so many bytes lower. `None` if an expression says where something is: it may count from
    /// the stack pointer.
    pub(crate) fn lowered(&self, bytes: i64) -> Option<Row> {
        /// Number of `%rsp` (psABI for AMD64, figure 3.36).
        const STACK_POINTER: u16 = 7;
        let plain = |rule: &Rule| !matches!(rule, Rule::At(_) | Rule::Is(_));
        let frame = match self.frame {
            Rule::Sum(STACK_POINTER, offset) => Rule::Sum(STACK_POINTER, offset + bytes),
            ref other => other.clone(),
        };
        let all = plain(&frame) && self.registers.iter().all(|(_, rule)| plain(rule));
        all.then(|| Row { frame, ..self.clone() })
    }
}

/// Where something is. Expressions are their own bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Sum(u16, i64),
    At(Vec<u8>),
    Is(Vec<u8>),
    Plain(RegisterRule<usize>),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Sum(register, offset) => write!(f, "r{register}{offset:+}"),
            Rule::At(bytes) => write!(f, "at {bytes:02x?}"),
            Rule::Is(bytes) => write!(f, "is {bytes:02x?}"),
            Rule::Plain(rule) => write!(f, "{rule:?}"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.frame)?;
        for (register, rule) in &self.registers {
            write!(f, ", r{register} {rule}")?;
        }
        write!(f, ", arguments {}", self.arguments)
    }
}

fn meaning(frame: &EhFrame<Slice<'_>>, row: &gimli::UnwindTableRow<usize>) -> gimli::Result<Row> {
    let bytes = |e: &gimli::UnwindExpression<usize>| e.get(frame).map(|e| e.0.slice().to_vec());
    let place = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => Rule::Sum(register.0, *offset),
        CfaRule::Expression(e) => Rule::Is(bytes(e)?),
    };
    let mut registers = Vec::new();
    for (register, rule) in row.registers() {
        let rule = match rule {
            RegisterRule::Expression(e) => Rule::At(bytes(e)?),
            RegisterRule::ValExpression(e) => Rule::Is(bytes(e)?),
            RegisterRule::SameValue => continue,
            other => Rule::Plain(other.clone()),
        };
        registers.push((register.0, rule));
    }
    registers.sort_by_key(|(register, _)| *register);
    Ok(Row { frame: place, registers, arguments: row.saved_args_size() })
}
