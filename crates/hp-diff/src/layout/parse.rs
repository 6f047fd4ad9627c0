//! One pass over all DIEs, keeping the few that say something about types.
//!
//! Nine tenths of `.debug_info` are parameters, locations, call sites and inlined code. They are skipped without
//! reading their attributes; what lies below them attaches to the nearest ancestor that was kept. A kept DIE becomes a
//! [`Node`] of fixed size; what its numbers mean depends on its tag, see the fields.

use crate::dwarf::{Reader, Sections};
use gimli::{AttributeValue, DwTag, Operation, UnitType, constants as dw};
use rayon::prelude::*;
use rustc_hash::FxHashMap;

/// No such attribute, no such DIE.
pub(super) const NONE: u64 = u64::MAX;
/// Marks a reference into `.debug_types`, so that one number names any DIE of the build.
const IN_TYPES: u64 = 1 << 63;
/// Marks a reference into the supplementary file.
const IN_SUPPLEMENT: u64 = 1 << 62;

/// Set in [`Node::flags`].
pub(super) mod flag {
    /// `DW_AT_declaration`: not a definition.
    pub(in crate::layout) const DECLARATION: u8 = 1;
    /// `DW_AT_external`; a member with it is a static one.
    pub(in crate::layout) const EXTERNAL: u8 = 2;
    /// `DW_AT_virtuality` other than none.
    pub(in crate::layout) const VIRTUAL: u8 = 4;
    /// The place is computed at run time; the expression is in the side table.
    pub(in crate::layout) const COMPUTED: u8 = 8;
    /// `DW_AT_GNU_vector`.
    pub(in crate::layout) const VECTOR: u8 = 16;
    /// The origin is a `DW_AT_signature`: a stand-in for the definition in a type unit.
    pub(in crate::layout) const SIGNATURE: u8 = 32;
}

/// A DIE that was kept.
pub(super) struct Node<'d> {
    /// Offset in its unit.
    pub(super) offset: u32,
    /// Index of the nearest kept ancestor in the same unit, or `u32::MAX`.
    pub(super) parent: u32,
    /// Index after its last descendant.
    pub(super) end: u32,
    pub(super) tag: DwTag,
    pub(super) flags: u8,
    /// Empty if it has none.
    pub(super) name: &'d [u8],
    /// `DW_AT_type`, as a reference for [`Tree::find`].
    pub(super) ty: u64,
    /// `DW_AT_specification`, `DW_AT_abstract_origin` or `DW_AT_signature`. Pointer to member: the class.
    pub(super) origin: u64,
    /// Size in bytes. Enumerator and variant: the upper half of a 128-bit value.
    pub(super) size: u64,
    /// Member and base class: offset in *bits*. Type: alignment. Variable: address. Virtual function: vtable slot.
    pub(super) place: u64,
    /// Member: size in bits if it is a bit-field. Enumerator, variant: value. Subrange: element count. Base type: encoding.
    pub(super) value: u64,
}

/// A kept DIE's number: unit, node.
pub(super) type Id = (u32, u32);

/// The kept part of one unit.
pub(super) struct Unit<'d> {
    /// Reference to the unit's header; references to its DIEs follow.
    pub(super) base: u64,
    length: u64,
    pub(super) nodes: Vec<Node<'d>>,
    /// By node, ascending: a linkage name, a location expression or a value wider than eight bytes.
    pub(super) side: Vec<(u32, &'d [u8])>,
    pub(super) die: gimli::Unit<Reader<'d>>,
    /// Written in C, where each file may have its own type of a name.
    pub(super) is_c: bool,
    /// A part that `dwz` made of what several units had in common.
    partial: bool,
    /// References to the units that it imports.
    pub(super) imports: Vec<u64>,
}

impl<'d> Unit<'d> {
    /// True if `reference` leads into this unit.
    pub(super) fn contains(&self, reference: u64) -> bool {
        reference.checked_sub(self.base).is_some_and(|offset| offset < self.length)
    }

    /// What tells units of one file apart: their section, and what they say of themselves.
    pub(super) fn kind(&self) -> (u64, bool, bool) {
        (self.base & (IN_TYPES | IN_SUPPLEMENT), self.is_c, self.partial)
    }

    pub(super) fn reference(&self, node: u32) -> u64 {
        self.base + u64::from(self.nodes[node as usize].offset)
    }

    pub(super) fn side(&self, node: u32) -> Option<&'d [u8]> {
        let at = self.side.binary_search_by_key(&node, |&(node, _)| node).ok()?;
        Some(self.side[at].1)
    }

    /// Where an attribute of one of its DIEs leads.
    pub(super) fn target(&self, value: AttributeValue<Reader<'d>>) -> Option<u64> {
        match value {
            AttributeValue::UnitRef(offset) => Some(self.base.saturating_add(offset.0 as u64)),
            AttributeValue::DebugInfoRef(offset) => Some(self.base & IN_SUPPLEMENT | offset.0 as u64),
            AttributeValue::DebugInfoRefSup(offset) => Some(IN_SUPPLEMENT | offset.0 as u64),
            _ => None,
        }
    }

    /// The source file's name without directories.
    pub(super) fn file(&self) -> &'d [u8] {
        let name = self.die.name.map_or(&[][..], |name| name.slice());
        name.rsplit(|&c| c == b'/').next().unwrap_or(name)
    }
}

/// All units of a build.
pub(super) struct Tree<'d> {
    dwarf: gimli::Dwarf<Reader<'d>>,
    supplement: Option<gimli::Dwarf<Reader<'d>>>,
    /// False for an object file whose sections have no place: no variable has an address.
    pub(super) placed: bool,
    /// Ascending by `base`.
    pub(super) units: Vec<Unit<'d>>,
}

impl<'d> Tree<'d> {
    /// Reads every unit.
    ///
    /// # Errors
    /// The first malformed or unsupported unit, by offset.
    pub(super) fn parse(sections: &'d Sections<'_>) -> Result<Tree<'d>, String> {
        let (dwarf, supplement, linked) = (sections.dwarf(), sections.supplement(), !sections.relocatable());
        let mut headers = Vec::new();
        let mut signatures = FxHashMap::default();
        let bad = |e: gimli::Error| format!("unit headers: {e}");
        let mut info = dwarf.units();
        while let Some(header) = info.next().map_err(bad)? {
            headers.push((header.debug_info_offset().map_or(0, |o| o.0 as u64), header));
        }
        let mut shared = supplement.as_ref().map(|s| s.units());
        while let Some(header) = shared.as_mut().map_or(Ok(None), |units| units.next()).map_err(bad)? {
            headers.push((IN_SUPPLEMENT | header.debug_info_offset().map_or(0, |o| o.0 as u64), header));
        }
        let mut types = dwarf.type_units();
        while let Some(header) = types.next().map_err(bad)? {
            headers.push((IN_TYPES | header.debug_types_offset().map_or(0, |o| o.0 as u64), header));
        }
        for (base, header) in &headers {
            if let UnitType::Type { type_signature, type_offset } = header.type_() {
                signatures.insert(type_signature.0, base + type_offset.0 as u64);
            }
        }
        let parsed: Vec<Result<Unit<'d>, String>> = headers
            .into_par_iter()
            .map(|(base, header)| {
                let at = base & !(IN_TYPES | IN_SUPPLEMENT);
                let dwarf = supplement.as_ref().filter(|_| base & IN_SUPPLEMENT != 0).unwrap_or(&dwarf);
                parse_unit(dwarf, header, base, &signatures, linked).map_err(|what| format!("unit at {at:#x}: {what}"))
            })
            .collect();
        Ok(Tree { dwarf, supplement, placed: linked, units: parsed.into_iter().collect::<Result<_, _>>()? })
    }

    /// For each unit the units of source files that it is part of: itself, or all that import it.
    pub(super) fn importers(&self) -> Vec<Vec<u32>> {
        let mut found: Vec<Vec<u32>> = vec![Vec::new(); self.units.len()];
        for (index, _) in self.units.iter().enumerate().filter(|(_, u)| !u.partial) {
            let mut open = vec![index];
            while let Some(part) = open.pop() {
                if found[part].last() != Some(&(index as u32)) {
                    found[part].push(index as u32);
                    open.extend(self.units[part].imports.iter().filter_map(|import| self.unit_index(*import)));
                }
            }
        }
        found
    }

    /// The text of a string attribute of a unit's DIE.
    pub(super) fn string(&self, unit: &Unit<'d>, value: AttributeValue<Reader<'d>>) -> Option<&'d [u8]> {
        let dwarf = self.supplement.as_ref().filter(|_| unit.base & IN_SUPPLEMENT != 0).unwrap_or(&self.dwarf);
        dwarf.attr_string(&unit.die, value).ok().map(|string| string.slice())
    }

    /// False where there are line tables and functions only (`-g1`).
    pub(super) fn describes_types(&self) -> bool {
        let untyped = [dw::DW_TAG_subprogram, dw::DW_TAG_namespace, dw::DW_TAG_variable];
        self.units.iter().any(|unit| unit.nodes.iter().any(|node| !untyped.contains(&node.tag)))
    }

    /// The kept DIE that a reference leads to.
    pub(super) fn find(&self, reference: u64) -> Option<Id> {
        let unit = self.unit_index(reference)?;
        let u = &self.units[unit];
        let node = u.nodes.binary_search_by_key(&(reference - u.base), |n| u64::from(n.offset)).ok()?;
        Some((unit as u32, node as u32))
    }

    /// The type that a reference leads to, with its contents, which may lie in a type unit.
    pub(super) fn find_type(&self, reference: u64) -> Option<Id> {
        let mut id = self.find(reference)?;
        for _ in 0..8 {
            if self.node(id).flags & flag::SIGNATURE == 0 {
                return Some(id);
            }
            id = self.find(self.node(id).origin)?;
        }
        None
    }

    /// True if the DIE or the declaration that it completes has a name of its own.
    pub(super) fn has_name(&self, id: Id) -> bool {
        let chain = std::iter::successors(Some(id), |&id| self.find(self.node(id).origin)).take(8);
        chain.into_iter().any(|id| !self.node(id).name.is_empty())
    }

    /// The unit that a reference leads into, and the offset there, of whatever DIE.
    pub(super) fn locate(&self, reference: u64) -> Option<(&Unit<'d>, gimli::UnitOffset)> {
        let unit = &self.units[self.unit_index(reference)?];
        Some((unit, gimli::UnitOffset((reference - unit.base) as usize)))
    }

    pub(super) fn unit_index(&self, reference: u64) -> Option<usize> {
        let index = self.units.partition_point(|u| u.base <= reference).checked_sub(1)?;
        (reference - self.units[index].base < self.units[index].length).then_some(index)
    }

    pub(super) fn unit(&self, id: Id) -> &Unit<'d> {
        &self.units[id.0 as usize]
    }

    pub(super) fn node(&self, id: Id) -> &Node<'d> {
        &self.unit(id).nodes[id.1 as usize]
    }

    pub(super) fn side(&self, id: Id) -> Option<&'d [u8]> {
        self.unit(id).side(id.1)
    }

    pub(super) fn parent(&self, id: Id) -> Option<Id> {
        let parent = self.node(id).parent;
        (parent != u32::MAX).then_some((id.0, parent))
    }

    /// Direct children, in order.
    pub(super) fn children(&self, id: Id) -> impl Iterator<Item = (Id, &Node<'d>)> {
        let nodes = &self.unit(id).nodes;
        let end = nodes[id.1 as usize].end;
        let mut next = id.1 + 1;
        std::iter::from_fn(move || {
            let child = (next < end).then_some(next)?;
            next = nodes[child as usize].end;
            Some(((id.0, child), &nodes[child as usize]))
        })
    }
}

/// What to do with a DIE, by its tag.
enum Interest {
    Keep,
    /// A variable is kept if it has a fixed address.
    IfFixed,
    /// Says which unit is part of this one.
    Import,
    Skip,
}

fn interest(tag: DwTag, parent: Option<&Node<'_>>) -> Interest {
    match tag {
        dw::DW_TAG_variable => Interest::IfFixed,
        dw::DW_TAG_imported_unit => Interest::Import,
        dw::DW_TAG_formal_parameter | dw::DW_TAG_unspecified_parameters => match parent {
            Some(p) if p.tag == dw::DW_TAG_subroutine_type => Interest::Keep,
            _ => Interest::Skip,
        },
        // Most compilers put the arguments into the name already.
        dw::DW_TAG_template_type_parameter | dw::DW_TAG_template_value_parameter => match parent {
            Some(p) if is_aggregate(p.tag) && !p.name.contains(&b'<') => Interest::Keep,
            _ => Interest::Skip,
        },
        dw::DW_TAG_compile_unit
        | dw::DW_TAG_partial_unit
        | dw::DW_TAG_type_unit
        | dw::DW_TAG_skeleton_unit
        | dw::DW_TAG_lexical_block
        | dw::DW_TAG_inlined_subroutine
        | dw::DW_TAG_label
        | dw::DW_TAG_call_site
        | dw::DW_TAG_call_site_parameter
        | dw::DW_TAG_GNU_call_site
        | dw::DW_TAG_GNU_call_site_parameter
        | dw::DW_TAG_imported_declaration
        | dw::DW_TAG_imported_module
        | dw::DW_TAG_dwarf_procedure => Interest::Skip,
        _ => Interest::Keep,
    }
}

/// Structure, union or class.
pub(super) fn is_aggregate(tag: DwTag) -> bool {
    matches!(tag, dw::DW_TAG_structure_type | dw::DW_TAG_class_type | dw::DW_TAG_union_type | dw::DW_TAG_interface_type)
}

fn parse_unit<'d>(
    dwarf: &gimli::Dwarf<Reader<'d>>,
    header: gimli::UnitHeader<Reader<'d>>,
    base: u64,
    signatures: &FxHashMap<u64, u64>,
    linked: bool,
) -> Result<Unit<'d>, String> {
    let text = |e: gimli::Error| e.to_string();
    let length = header.length_including_self() as u64;
    if length > u64::from(u32::MAX) {
        return Err("larger than 4 GiB".into());
    }
    let skeleton = matches!(header.type_(), UnitType::Skeleton(_));
    let mut die = dwarf.unit(header).map_err(text)?;
    die.line_program = None;
    if skeleton || die.dwo_id.is_some() || die.dwo_name().map_err(text)?.is_some() {
        return Err("its description is in a separate .dwo file; build without -gsplit-dwarf".into());
    }
    let is_c = is_c(&die).map_err(text)?;
    let root = die.entry(die.header.root_offset()).map_err(text)?;
    let partial = root.tag() == dw::DW_TAG_partial_unit;
    let mut parser = Parser {
        dwarf,
        unit: &die,
        base,
        signatures,
        linked,
        nodes: Vec::with_capacity(length as usize / BYTES_OF_NODE),
        side: Vec::new(),
        imports: Vec::new(),
    };
    parser.walk()?;
    let (mut nodes, side, imports) = (parser.nodes, parser.side, parser.imports);
    nodes.shrink_to_fit();
    Ok(Unit { base, length, nodes, side, die, is_c, partial, imports })
}

fn is_c(unit: &gimli::Unit<Reader<'_>>) -> gimli::Result<bool> {
    let root = unit.entry(unit.header.root_offset())?;
    Ok(match root.attr_value(dw::DW_AT_language) {
        Some(AttributeValue::Language(language)) => matches!(
            language,
            dw::DW_LANG_C | dw::DW_LANG_C89 | dw::DW_LANG_C99 | dw::DW_LANG_C11 | dw::DW_LANG_C17 | dw::DW_LANG_ObjC
        ),
        // Partial units need not say. The strict rules do no harm.
        _ => true,
    })
}

/// A unit has about so many bytes for each DIE that is kept; where it has fewer, the list grows.
const BYTES_OF_NODE: usize = 16;

struct Parser<'a, 'd> {
    dwarf: &'a gimli::Dwarf<Reader<'d>>,
    unit: &'a gimli::Unit<Reader<'d>>,
    base: u64,
    signatures: &'a FxHashMap<u64, u64>,
    linked: bool,
    nodes: Vec<Node<'d>>,
    side: Vec<(u32, &'d [u8])>,
    imports: Vec<u64>,
}

impl<'d> Parser<'_, 'd> {
    fn walk(&mut self) -> Result<(), String> {
        let text = |e: gimli::Error| e.to_string();
        let mut entries = self.unit.entries_raw(None).map_err(text)?;
        // For each open DIE: the nearest kept one, and whether that is the DIE itself.
        let mut open: Vec<(u32, bool)> = Vec::new();
        while !entries.is_empty() {
            let offset = entries.next_offset().0 as u32;
            let Some(abbreviation) = entries.read_abbreviation().map_err(text)? else {
                if let Some((node, true)) = open.pop() {
                    self.nodes[node as usize].end = self.nodes.len() as u32;
                }
                continue;
            };
            let parent = open.last().map_or(u32::MAX, |&(node, _)| node);
            let interest = interest(abbreviation.tag(), self.nodes.get(parent as usize));
            let index = self.nodes.len() as u32;
            let mut kept = false;
            if matches!(interest, Interest::Skip) {
                entries.skip_attributes(abbreviation.attributes()).map_err(text)?;
            } else {
                let node = self.read(&mut entries, abbreviation, offset, parent, index)?;
                kept = match interest {
                    Interest::Keep => true,
                    Interest::IfFixed => node.place != NONE,
                    Interest::Import | Interest::Skip => {
                        self.imports.push(node.origin);
                        false
                    }
                };
                if kept {
                    self.nodes.push(node);
                } else {
                    self.side.pop_if(|&mut (node, _)| node == index);
                }
            }
            if abbreviation.has_children() {
                open.push(if kept { (index, true) } else { (parent, false) });
            }
        }
        for (node, own) in open {
            if own {
                self.nodes[node as usize].end = self.nodes.len() as u32;
            }
        }
        Ok(())
    }

    /// Reads the attributes that matter and skips runs of those that do not.
    fn read(
        &mut self,
        entries: &mut gimli::EntriesRaw<'_, Reader<'d>>,
        abbreviation: &gimli::Abbreviation,
        offset: u32,
        parent: u32,
        index: u32,
    ) -> Result<Node<'d>, String> {
        let text = |e: gimli::Error| format!("DIE at {offset:#x}: {e}");
        let tag = abbreviation.tag();
        let mut node = Node {
            offset,
            parent,
            end: index + 1,
            tag,
            flags: 0,
            name: &[],
            ty: NONE,
            origin: NONE,
            size: NONE,
            place: NONE,
            value: NONE,
        };
        let mut bits = Bits::default();
        let attributes = abbreviation.attributes();
        let mut next = 0;
        while let Some(spec) = attributes.get(next) {
            if !matters(spec.name()) {
                let run = attributes[next..].iter().take_while(|spec| !matters(spec.name())).count();
                entries.skip_attributes(&attributes[next..next + run]).map_err(text)?;
                next += run;
                continue;
            }
            next += 1;
            let value = entries.read_attribute(*spec).map_err(text)?.raw_value();
            self.attribute(&mut node, &mut bits, index, spec.name(), value)
                .map_err(|what| format!("DIE at {offset:#x}: {what}"))?;
        }
        if matches!(tag, dw::DW_TAG_member | dw::DW_TAG_inheritance) {
            bits.settle(&mut node, entries_are_big_endian(self.unit));
        } else if tag == dw::DW_TAG_subrange_type && node.value == NONE {
            node.value = bits.upper.map_or(NONE, |upper| upper.wrapping_add(1).wrapping_sub(bits.lower));
        }
        Ok(node)
    }

    fn attribute(
        &mut self,
        node: &mut Node<'d>,
        bits: &mut Bits,
        index: u32,
        name: gimli::DwAt,
        value: AttributeValue<Reader<'d>>,
    ) -> Result<(), String> {
        let set = |flags: &mut u8, flag| {
            if matches!(value, AttributeValue::Flag(true)) {
                *flags |= flag;
            }
        };
        match name {
            dw::DW_AT_name => node.name = self.string(value)?,
            dw::DW_AT_linkage_name | dw::DW_AT_MIPS_linkage_name => self.side.push((index, self.string(value)?)),
            dw::DW_AT_type => node.ty = self.reference(value)?,
            dw::DW_AT_specification | dw::DW_AT_abstract_origin | dw::DW_AT_import => {
                node.origin = self.reference(value)?
            }
            dw::DW_AT_signature => {
                node.origin = self.reference(value)?;
                node.flags |= flag::SIGNATURE | flag::DECLARATION;
            }
            dw::DW_AT_containing_type if node.tag == dw::DW_TAG_ptr_to_member_type => {
                node.origin = self.reference(value)?;
            }
            dw::DW_AT_byte_size => node.size = number(value).unwrap_or(NONE),
            dw::DW_AT_alignment if is_aggregate(node.tag) || node.tag == dw::DW_TAG_enumeration_type => {
                node.place = number(value).unwrap_or(NONE);
            }
            dw::DW_AT_encoding => node.value = number(value).unwrap_or(NONE),
            dw::DW_AT_declaration => set(&mut node.flags, flag::DECLARATION),
            dw::DW_AT_external => set(&mut node.flags, flag::EXTERNAL),
            dw::DW_AT_GNU_vector => set(&mut node.flags, flag::VECTOR),
            dw::DW_AT_virtuality if number(value).unwrap_or(0) != 0 => node.flags |= flag::VIRTUAL,
            dw::DW_AT_bit_size => bits.size = number(value),
            dw::DW_AT_bit_offset => bits.legacy = number(value),
            dw::DW_AT_data_bit_offset => bits.start = number(value),
            dw::DW_AT_upper_bound => bits.upper = number(value),
            dw::DW_AT_lower_bound => bits.lower = number(value).unwrap_or(0),
            dw::DW_AT_count => node.value = number(value).unwrap_or(NONE),
            dw::DW_AT_const_value | dw::DW_AT_discr_value | dw::DW_AT_discr_list if has_value(node.tag) => {
                match (number(value), value) {
                    (Some(value), _) => node.value = value,
                    (None, AttributeValue::Block(bytes)) => self.side.push((index, bytes.slice())),
                    (None, AttributeValue::Data16(value)) => {
                        node.value = value as u64;
                        node.size = (value >> 64) as u64;
                    }
                    _ => {}
                }
            }
            dw::DW_AT_data_member_location => match number(value) {
                Some(bytes) => bits.byte = bytes,
                None => match self.constant(value)? {
                    Some(bytes) => bits.byte = bytes,
                    None => {
                        node.flags |= flag::COMPUTED;
                        self.side.extend(value.exprloc_value().map(|e| (index, e.0.slice())));
                    }
                },
            },
            dw::DW_AT_vtable_elem_location => {
                node.place = number(value).map_or_else(|| self.constant(value), |n| Ok(Some(n)))?.unwrap_or(NONE);
            }
            dw::DW_AT_location if node.tag == dw::DW_TAG_variable => {
                node.place = self.address(value)?.unwrap_or(NONE);
            }
            _ => {}
        }
        Ok(())
    }

    fn string(&self, value: AttributeValue<Reader<'d>>) -> Result<&'d [u8], String> {
        match self.dwarf.attr_string(self.unit, value) {
            Ok(string) => Ok(string.slice()),
            Err(_) if matches!(value, AttributeValue::DebugStrRefSup(_)) => Err(SUPPLEMENTARY.into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// A reference that names one DIE of the whole build.
    fn reference(&self, value: AttributeValue<Reader<'d>>) -> Result<u64, String> {
        match value {
            AttributeValue::UnitRef(offset) => Ok(self.base.saturating_add(offset.0 as u64)),
            AttributeValue::DebugInfoRef(offset) => Ok(self.base & IN_SUPPLEMENT | offset.0 as u64),
            AttributeValue::DebugInfoRefSup(offset) if self.dwarf.sup.is_some() => Ok(IN_SUPPLEMENT | offset.0 as u64),
            AttributeValue::DebugTypesRef(signature) => self
                .signatures
                .get(&signature.0)
                .copied()
                .ok_or_else(|| format!("type unit {:016x} is missing", signature.0)),
            AttributeValue::DebugInfoRefSup(_) => Err(SUPPLEMENTARY.into()),
            _ => Err("a reference of an unknown form".into()),
        }
    }

    /// The number that a trivial location expression stands for: `DW_OP_plus_uconst N` or `DW_OP_constu N`.
    fn constant(&self, value: AttributeValue<Reader<'d>>) -> Result<Option<u64>, String> {
        let Some(expression) = value.exprloc_value() else { return Ok(None) };
        let mut operations = expression.operations(self.unit.encoding());
        let first = operations.next().map_err(|e| e.to_string())?;
        let rest = operations.next().map_err(|e| e.to_string())?;
        Ok(match (first, rest) {
            (Some(Operation::PlusConstant { value } | Operation::UnsignedConstant { value }), None) => Some(value),
            _ => None,
        })
    }

    /// The address of a variable with static storage; thread-local and computed ones have none.
    fn address(&self, value: AttributeValue<Reader<'d>>) -> Result<Option<u64>, String> {
        let Some(expression) = value.exprloc_value() else { return Ok(None) };
        let text = |e: gimli::Error| e.to_string();
        let mut operations = expression.operations(self.unit.encoding());
        let base = match operations.next().map_err(text)? {
            Some(Operation::Address { address }) => address,
            Some(Operation::AddressIndex { index }) => self.dwarf.address(self.unit, index).map_err(text)?,
            _ => return Ok(None),
        };
        let delta = match operations.next().map_err(text)? {
            None => 0,
            Some(Operation::PlusConstant { value }) => value,
            Some(_) => return Ok(None),
        };
        // In a linked image 0 and the highest addresses mean: discarded by the linker.
        let discarded = self.linked && (base == 0 || base >= u64::MAX - 1);
        Ok((!discarded).then_some(base.wrapping_add(delta)))
    }
}

const SUPPLEMENTARY: &str = "it needs the file that its .gnu_debugaltlink names, which was not found or is of another build; install the package that has it, or give --debug-dir";

fn entries_are_big_endian(unit: &gimli::Unit<Reader<'_>>) -> bool {
    use gimli::{Endianity, Reader as _};
    unit.header.range_from(unit.header.root_offset()..).is_ok_and(|bytes| bytes.endian().is_big_endian())
}

/// Tags whose constant value is part of a layout.
fn has_value(tag: DwTag) -> bool {
    matches!(tag, dw::DW_TAG_enumerator | dw::DW_TAG_variant | dw::DW_TAG_template_value_parameter)
}

fn matters(name: gimli::DwAt) -> bool {
    matches!(
        name,
        dw::DW_AT_name
            | dw::DW_AT_linkage_name
            | dw::DW_AT_MIPS_linkage_name
            | dw::DW_AT_type
            | dw::DW_AT_specification
            | dw::DW_AT_abstract_origin
            | dw::DW_AT_import
            | dw::DW_AT_signature
            | dw::DW_AT_containing_type
            | dw::DW_AT_byte_size
            | dw::DW_AT_alignment
            | dw::DW_AT_encoding
            | dw::DW_AT_declaration
            | dw::DW_AT_external
            | dw::DW_AT_GNU_vector
            | dw::DW_AT_virtuality
            | dw::DW_AT_bit_size
            | dw::DW_AT_bit_offset
            | dw::DW_AT_data_bit_offset
            | dw::DW_AT_upper_bound
            | dw::DW_AT_lower_bound
            | dw::DW_AT_count
            | dw::DW_AT_const_value
            | dw::DW_AT_discr_value
            | dw::DW_AT_discr_list
            | dw::DW_AT_data_member_location
            | dw::DW_AT_vtable_elem_location
            | dw::DW_AT_location
    )
}

/// An integer, negative ones in two's complement.
fn number(value: AttributeValue<Reader<'_>>) -> Option<u64> {
    match value {
        AttributeValue::Sdata(value) => Some(value as u64),
        _ => value.udata_value(),
    }
}

/// Where a member or bit-field lies, in whichever of three ways DWARF says so.
#[derive(Default)]
struct Bits {
    byte: u64,
    size: Option<u64>,
    /// `DW_AT_data_bit_offset` (DWARF 4 and later): from the start of the structure.
    start: Option<u64>,
    /// `DW_AT_bit_offset` (DWARF 2, and GCC up to DWARF 4): from the storage unit's most significant bit.
    legacy: Option<u64>,
    upper: Option<u64>,
    lower: u64,
}

impl Bits {
    /// Sets the node's place (in bits from the start) and size in bits.
    fn settle(&self, node: &mut Node<'_>, big_endian: bool) {
        node.value = self.size.unwrap_or(NONE);
        let storage = self.byte.wrapping_mul(8);
        node.place = match (self.start, self.legacy) {
            (Some(start), _) => storage.wrapping_add(start),
            (None, None) => storage,
            (None, Some(from_top)) if big_endian || node.size == NONE => storage.wrapping_add(from_top),
            (None, Some(from_top)) => storage
                .wrapping_add(node.size.wrapping_mul(8))
                .wrapping_sub(from_top)
                .wrapping_sub(self.size.unwrap_or(0)),
        };
    }
}
