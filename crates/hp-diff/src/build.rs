//! A build, ready to be compared: its image, its entities and its decoded code.

mod fragments;
mod models;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::ahead;
use crate::arch::{self, Code, JumpTable};
use crate::before;
use crate::endless;
use crate::entity::{CodeRange, FunctionId, Map};
use crate::followed::Followed;
use crate::image::Image;
use crate::leftovers::{Contents, Leftovers};
use crate::lsda;
use crate::plain_names;
use crate::templates;
use models::Models;

/// The decoded code of one function.
#[derive(Debug, Default)]
pub(crate) struct FunctionCode {
    /// One for each range.
    pub ranges: Vec<Code>,
    pub tables: Vec<JumpTable>,
    /// A computed jump whose table was not found.
    pub unresolved_jump: Option<u64>,
    /// Every computed jump reads one of the tables.
    pub complete: bool,
}

/// One of the two inputs.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    pub image: Image<'a>,
    pub map: Map<'a>,
    pub code: Vec<FunctionCode>,
    /// Exception tables by the start of the code that they are for.
    pub landing: lsda::Tables,
    pub leftovers: Leftovers,
    pub contents: Contents,
    pub followed: Arc<Followed>,
    /// Addresses of all jump tables, ordered.
    tables: Vec<u64>,
}

impl<'a> Build<'a> {
    /// Decodes every function of `image`. In position-dependent code, `absolute` is the
    /// range of numbers that may be addresses.
    pub(crate) fn new(image: Image<'a>, absolute: Option<Range<u64>>) -> Build<'a> {
        let map = mapped(&image);
        let (decoded, _) = decoded(&image, &map, absolute.as_ref(), None);
        let mut build = Build::of(image, map, decoded);
        build.find_starts();
        build
    }

    /// Two builds that are to be compared. Most of their code is alike, and what that does is found out once.
    pub(crate) fn both(old: Image<'a>, new: Image<'a>, absolute: Option<Range<u64>>) -> (Build<'a>, Build<'a>) {
        let (map, other) = rayon::join(|| mapped(&old), || mapped(&new));
        let (code, _) = decoded(&old, &map, absolute.as_ref(), None);
        let linked = absolute.is_none() && old.fields.is_none() && new.fields.is_none();
        let models = linked.then(|| Models::new(&map, &code));
        let (others, like) = decoded(&new, &other, absolute.as_ref(), models.as_ref());
        drop(models);
        let (mut old, mut new) = rayon::join(|| Build::of(old, map, code), || Build::of(new, other, others));
        old.find_starts();
        let alike = models::alike(&old, &new, like);
        if let Some(followed) = Arc::get_mut(&mut new.followed) {
            followed.ask_first(alike);
        }
        new.find_starts();
        (old, new)
    }

    fn find_starts(&mut self) {
        let starts = ahead::starts(self);
        self.map.add_references(starts);
    }

    fn of(image: Image<'a>, mut map: Map<'a>, decoded: Vec<Vec<Code>>) -> Build<'a> {
        let decoded = fragments::attach(&mut map, &image, decoded);
        let leaving = decoded.par_iter().flatten().flat_map_iter(|code| code.sites.leaving_targets());
        let calculated =
            decoded.par_iter().zip(&map.functions).flat_map_iter(|(ranges, f)| before::starts(&image, f, ranges));
        let calculated: Vec<u64> = calculated.collect();
        map.set_references(&image, leaving.chain(calculated));
        let found: Vec<(FunctionCode, Vec<u64>)> = decoded
            .into_par_iter()
            .zip(&map.functions)
            .map(|(ranges, function)| {
                if !ranges.iter().any(|c| c.computed_jumps || c.distances) {
                    return (FunctionCode { ranges, ..FunctionCode::default() }, Vec::new());
                }
                let spans: Vec<(u64, &[u8])> = function.ranges.iter().map(|r| (r.address, r.bytes)).collect();
                let context = arch::JumpTableContext {
                    ranges: &spans,
                    // Where another object begins, its own pointers may lead to this function, too.
                    bytes_from: &|a| {
                        let bytes = if image.is_constant(a) { image.bytes_from(a) } else { &[] };
                        let room = map.object_at(a).map(|id| map.objects[id].end());
                        let next = map.objects_behind(a).next().map(|id| map.objects[id].address);
                        let end = room.or(next).map_or(u64::MAX, |end| end - a);
                        &bytes[..bytes.len().min(usize::try_from(end).unwrap_or(usize::MAX))]
                    },
                };
                let tables = arch::tables(&ranges.iter().collect::<Vec<_>>(), &context);
                let (unresolved_jump, complete) = (tables.unresolved_jump, tables.complete);
                (FunctionCode { ranges, tables: tables.jumps, unresolved_jump, complete }, tables.distances)
            })
            .collect();
        let starts = found.iter().enumerate().flat_map(|(f, (_, starts))| starts.iter().map(move |at| (*at, f)));
        let starts: Vec<(u64, FunctionId)> = starts.collect();
        let code: Vec<FunctionCode> = found.into_iter().map(|(code, _)| code).collect();
        map.add_distances(&image, &starts);
        templates::find(&mut map, &image, &code);
        let landing = lsda::tables(&image);
        let mut tables: Vec<u64> = code.iter().flat_map(|c| &c.tables).map(|t| t.address).collect();
        tables.sort_unstable();
        let followed = Arc::new(Followed::new(&code, endless::find(&map, &image, &code)));
        let (leftovers, contents) = (Leftovers::default(), Contents::default());
        Build { image, map, code, landing, leftovers, contents, followed, tables }
    }

    /// True if a jump table of some function lies at `address`.
    pub(crate) fn is_table(&self, address: u64) -> bool {
        self.tables.binary_search(&address).is_ok()
    }

    /// The table at `address` that `function` reads.
    pub(crate) fn table(&self, function: FunctionId, address: u64) -> Option<&JumpTable> {
        self.code.get(function)?.tables.iter().find(|t| t.address == address)
    }
}

/// The entities of an image, so far as they are known without its code.
fn mapped<'a>(image: &Image<'a>) -> Map<'a> {
    let mut map = Map::new(image);
    plain_names::mark(&mut map.functions, &image.debug);
    map
}

/// The code of each function. Of what is like one of `models` nothing is decoded: there, starts of ranges and of
/// those that they are like.
fn decoded(
    image: &Image<'_>,
    map: &Map<'_>,
    absolute: Option<&Range<u64>>,
    models: Option<&Models<'_, '_>>,
) -> (Vec<Vec<Code>>, Vec<(u64, u64)>) {
    /// Functions that one thread takes, one after the other.
    const TOGETHER: usize = 128;
    let parts = map.functions.par_chunks(TOGETHER).enumerate();
    let parts = parts.map_init(arch::DecodeRoom::default, |room, (part, functions)| {
        let mut seeker = models.map(|models| models.from(part * TOGETHER));
        let mut code = |range: &CodeRange<'_>| {
            let known = seeker.as_mut().and_then(|seeker| seeker.like(range));
            known.unwrap_or_else(|| decoded_range(image, range, absolute, room))
        };
        let decoded: Vec<Vec<Code>> = functions.iter().map(|f| f.ranges.iter().map(&mut code).collect()).collect();
        (decoded, seeker.map(|seeker| seeker.found).unwrap_or_default())
    });
    let (decoded, found): (Vec<_>, Vec<_>) = parts.collect::<Vec<_>>().into_iter().unzip();
    (decoded.into_iter().flatten().collect(), found.into_iter().flatten().collect())
}

/// Decodes one range; where relocations say which absolute fields are addresses, they do.
fn decoded_range(
    image: &Image<'_>,
    range: &CodeRange<'_>,
    absolute: Option<&Range<u64>>,
    room: &mut arch::DecodeRoom,
) -> Code {
    let Some(fields) = image.fields else { return arch::decode(range.address, range.bytes, absolute, room) };
    let mut code = arch::decode(range.address, range.bytes, None, room);
    let inside = fields.range(range.address..range.end());
    let fields: Vec<_> = inside.map(|(at, field)| ((at - range.address) as u32, *field)).collect();
    arch::add_known(&mut code, range.address, range.bytes, &fields);
    code
}
