//! A function's instructions as tokens that can be compared across builds.

use rustc_hash::FxHashMap;

use crate::ahead::{self, Meant};
use crate::arch::{self, Encoding, Site, Use};
use crate::before::before;
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::describe::{describe, offset};
use crate::entity::{FunctionId, ObjectId, Target, cold_parent};
use crate::image::Word;
use crate::usage::is_number;

/// Bytes of a constant that are shown.
const SHOWN: usize = 16;

/// A field of an instruction, and what it leads to.
#[derive(Clone, Debug)]
pub(super) struct Lead {
    pub site: Site,
    /// Equal in both builds if the fields lead to the same.
    pub key: String,
    /// For people.
    pub name: String,
    /// Leads to code: a function, a stub of one, a slot with one.
    pub code: bool,
}

/// One instruction.
#[derive(Debug)]
pub(super) struct Token<'a> {
    pub range: usize,
    pub offset: u32,
    /// Link-time address.
    pub address: u64,
    pub cold: bool,
    /// Its bytes; empty for what is no instruction.
    code: &'a [u8],
    pub masked: String,
    pub padding: bool,
    pub frame: bool,
    pub leads: Vec<Lead>,
}

impl Token<'_> {
    /// With the names of what its fields lead to.
    pub(super) fn text(&self) -> String {
        let names = self.leads.iter().map(|l| ((self.address, l.site.target), l.name.clone()));
        if self.code.is_empty() { self.masked.clone() } else { arch::text(self.address, self.code, names.collect()) }
    }

    /// Equal for instructions that do the same and lead to the same.
    pub(super) fn key(&self) -> String {
        let leads: Vec<&str> = self.leads.iter().map(|l| l.key.as_str()).collect();
        format!("{}\n{}", self.masked, leads.join("\n"))
    }
}

/// One of the two builds, as tokens are made of it.
pub(super) struct Side<'s, 'a> {
    pub build: &'s Build<'a>,
    pairs: &'s Correlation,
    /// Old constants whose content differs; `None` in the new build.
    changed: Option<&'s Changes>,
    /// Entities are the same if they have the same name, for want of pairs.
    by_name: bool,
    /// For the code of a patch: its base.
    base: Option<Base<'s, 'a>>,
}

/// The place of a patch's base, and the base itself if it is at hand.
pub(super) struct Base<'s, 'a> {
    pub range: std::ops::Range<u64>,
    pub side: Option<&'s Side<'s, 'a>>,
}

impl<'s, 'a> Side<'s, 'a> {
    pub(super) fn old(build: &'s Build<'a>, pairs: &'s Correlation, changes: &'s Changes) -> Self {
        Side { build, pairs, changed: Some(changes), by_name: false, base: None }
    }

    pub(super) fn new(build: &'s Build<'a>, pairs: &'s Correlation) -> Self {
        Side { build, pairs, changed: None, by_name: false, base: None }
    }

    /// The base of a patch.
    pub(super) fn by_name(build: &'s Build<'a>, pairs: &'s Correlation, changes: &'s Changes) -> Self {
        Side { build, pairs, changed: Some(changes), by_name: true, base: None }
    }

    /// The code of a patch.
    pub(super) fn of_patch(build: &'s Build<'a>, pairs: &'s Correlation, base: Option<Base<'s, 'a>>) -> Self {
        Side { build, pairs, changed: None, by_name: true, base }
    }

    /// The tokens of a function, all its ranges one after the other.
    pub(super) fn tokens(&self, function: FunctionId) -> Vec<Token<'a>> {
        let mut tokens = Vec::new();
        for (i, range) in self.build.map.functions[function].ranges.iter().enumerate() {
            let mut leads: FxHashMap<u32, Vec<Lead>> = FxHashMap::default();
            for site in &self.build.code[function].ranges[i].sites {
                leads.entry(site.instruction).or_default().push(self.lead(function, site));
            }
            let named =
                leads.values().flatten().map(|l| (range.address + u64::from(l.site.instruction), l.site.target));
            let texts = arch::texts(range.address, range.bytes, named);
            let cold = i > 0 || cold_parent(range.name).is_some();
            tokens.extend(texts.into_iter().map(|t| Token {
                range: i,
                offset: t.offset,
                address: range.address + u64::from(t.offset),
                cold,
                code: &range.bytes[t.offset as usize..][..usize::from(t.length)],
                masked: t.masked,
                padding: t.padding,
                frame: t.frame,
                leads: leads.remove(&t.offset).unwrap_or_default(),
            }));
        }
        tokens
    }

    fn lead(&self, function: FunctionId, site: Site) -> Lead {
        let (map, image) = (&self.build.map, &self.build.image);
        if let Some(lead) = self.in_base(&site) {
            return lead;
        }
        if self.build.table(function, site.target).is_some() {
            return Lead { site, key: "table".into(), name: "its jump table".into(), code: false };
        }
        if is_number(self.build, function, &site) {
            let number = format!("{:#x}", site.target);
            return Lead { site, key: number.clone(), name: number, code: false };
        }
        if self.base.is_none()
            && let Some(start) = self.meant_start(function, &site)
        {
            let meant = Site { target: start, ..site };
            let distance = site.target.wrapping_sub(start) as i64;
            let (name, key) = match map.resolve(image, &meant) {
                Target::Literal => (self.literal_name(&meant), self.content(&meant)),
                target => (describe(self.build, function, &meant), self.key(&target, &meant, |_| false)),
            };
            return Lead {
                site,
                key: format!("{key} {distance}"),
                name: format!("{name}{}", offset(distance)),
                code: false,
            };
        }
        let target = map.resolve(image, &site);
        if let Target::Function(f, range, offset) = target
            && f == function
            && (range, offset) != (0, 0)
        {
            let part = if range == 0 { "" } else { "cold" };
            return Lead { site, key: "local".into(), name: format!("{part}+{offset:#x}"), code: false };
        }
        let code = match &target {
            Target::Function(..) | Target::Stub(_) => true,
            Target::Slot(Word::Address(a)) => map.function_at(*a).is_some(),
            _ => site.usage == Use::Branch,
        };
        let name = match target {
            Target::Literal => self.literal_name(&site),
            _ => describe(self.build, function, &site),
        };
        let own = |f| f == function;
        let key = match &target {
            Target::Literal => self.content(&site),
            Target::Object(o, 0) if self.is_copied(*o) => self.content(&site),
            Target::Function(f, 0, 0) if own(*f) => "self".into(),
            _ if self.by_name => name.clone(),
            _ => self.key(&target, &site, own),
        };
        let name = match target {
            Target::Object(o, 0) if self.is_copied(o) => self.literal_name(&site),
            _ => name,
        };
        Lead { site, key, name, code }
    }

    /// Where what a site means begins, if that is another place than the one that it leads to.
    fn meant_start(&self, function: FunctionId, site: &Site) -> Option<u64> {
        if let Some(before) = before(self.build, function, site) {
            return Some(before.start);
        }
        match ahead::is_odd(self.build, function, site).then(|| ahead::meant_by(self.build, function, site))?? {
            Meant::There(start) => Some(start),
            _ => None,
        }
    }

    /// A constant that a patch brings along under a name of its own.
    fn is_copied(&self, o: ObjectId) -> bool {
        let object = &self.build.map.objects[o];
        self.base.is_some() && object.constant && object.name().starts_with(".L")
    }

    /// What a field of a patch leads to in its base.
    fn in_base(&self, site: &Site) -> Option<Lead> {
        let base = self.base.as_ref().filter(|b| b.range.contains(&site.target))?;
        let address = site.target - base.range.start;
        let Some(side) = base.side else {
            let named = self.build.image.symbols.iter().find(|s| s.address == site.target);
            let name = named.map_or_else(|| format!("the base at {address:#x}"), |s| s.name.to_owned());
            return Some(Lead { site: *site, key: name.clone(), name, code: site.usage == Use::Branch });
        };
        let lead = side.lead(FunctionId::MAX, Site { target: address, encoding: Encoding::PcRelative, ..*site });
        Some(Lead { site: *site, ..lead })
    }

    fn key(&self, target: &Target<'_>, site: &Site, own: impl Fn(FunctionId) -> bool) -> String {
        match target {
            Target::Function(f, 0, 0) if own(*f) => "self".into(),
            Target::Function(f, range, offset) => format!("{} {range} {offset}", self.function(*f)),
            Target::Object(o, offset) => format!("{} {offset}", self.object(*o)),
            Target::Stub(word) => format!("stub {}", self.word(word)),
            Target::Slot(word) => format!("slot {}", self.word(word)),
            Target::Literal => self.content(site),
            Target::Marker(name) => format!("marker {name}"),
            Target::Header(offset) => format!("header {offset}"),
            Target::Unknown => format!("unknown {:#x}", site.target),
        }
    }

    fn function(&self, f: FunctionId) -> String {
        match self.changed.map(|_| self.pairs.functions.new_of(f)) {
            Some(Some(g)) => format!("function {g}"),
            Some(None) => format!("old function {f}"),
            None => format!("function {f}"),
        }
    }

    fn object(&self, o: ObjectId) -> String {
        match self.changed.map(|changes| (changes.constants.contains(&o), self.pairs.objects.new_of(o))) {
            Some((false, Some(p))) => format!("object {p}"),
            Some(_) => format!("old object {o}"),
            None => format!("object {o}"),
        }
    }

    fn word(&self, word: &Word) -> String {
        let (Word::Address(a) | Word::Resolver(a)) = word else { return format!("{word:?}") };
        match self.build.map.resolve_address(&self.build.image, *a, Use::Address) {
            Target::Function(f, range, offset) => format!("{} {range} {offset}", self.function(f)),
            Target::Object(o, offset) => format!("{} {offset}", self.object(o)),
            Target::Literal => format!("{:?}", self.build.map.literal(&self.build.image, *a)),
            Target::Marker(name) => format!("marker {name}"),
            _ => "an address".into(),
        }
    }

    fn bytes(&self, site: &Site) -> &'a [u8] {
        let image = &self.build.image;
        match site.usage {
            Use::Access(n) => image.bytes(site.target, u64::from(n)).unwrap_or_default(),
            _ if self.base.is_some() => {
                // A patch ends a text where the object ends.
                let object = self.build.map.object_at(site.target).map(|o| &self.build.map.objects[o]);
                object.and_then(|o| image.bytes(site.target, o.end() - site.target)).unwrap_or_default()
            }
            _ => self.build.map.literal(image, site.target),
        }
    }

    /// A constant's bytes; what its words lead to in the place of addresses.
    fn content(&self, site: &Site) -> String {
        let mut bytes = self.bytes(site).to_vec();
        let mut words = Vec::new();
        let end = site.target + bytes.len() as u64;
        for (address, word) in self.build.image.words.range(site.target..end) {
            let at = (address - site.target) as usize;
            let last = bytes.len().min(at + 8);
            bytes[at..last].fill(0);
            words.push(self.word(word));
        }
        // One letter for each byte: nobody reads it.
        bytes.iter().map(|b| char::from(*b)).chain(words.join(" ").chars()).collect()
    }

    fn literal_name(&self, site: &Site) -> String {
        let bytes = self.bytes(site);
        let text = bytes.strip_suffix(&[0]).and_then(|b| std::str::from_utf8(b).ok());
        match text.filter(|t| site.usage == Use::Address && !t.chars().any(|c| c.is_control() && !c.is_whitespace())) {
            Some(text) => format!("{text:?}"),
            None => {
                let hex: Vec<String> = bytes.iter().take(SHOWN).map(|b| format!("{b:02x}")).collect();
                let more = if bytes.len() > SHOWN { " …" } else { "" };
                format!("{{{}{more}}}", hex.join(" "))
            }
        }
    }
}
