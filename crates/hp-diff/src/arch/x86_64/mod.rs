//! x86-64: decoding by `iced-x86`, encodings after the Intel SDM, volume 2.

mod arguments;
mod copied;
mod decode;
mod derived;
mod displaced;
mod identity;
mod immediates;
mod indexed;
mod jump_table;
mod known;
mod plt;
mod registers;
mod text;
mod through_slot;
mod thunk;
mod touched;
mod values;
mod ways;

pub(crate) use arguments::{CallArgument, call_arguments};
pub(crate) use copied::copied;
pub(crate) use decode::{DecodeRoom, branch, decode, first_difference, instructions, padding, unpadded};
pub(crate) use derived::reach;
pub(crate) use displaced::displaced;
pub(crate) use identity::compares_address;
pub(crate) use immediates::differing_arguments;
pub(crate) use indexed::{Field, field, is_indexed, numbers, stays_inside};
pub(crate) use jump_table::{Context as JumpTableContext, Jumps, tables};
pub(crate) use known::add_known;
pub(crate) use plt::plt_stubs;
pub(crate) use registers::{changed_registers, is_call, returns};
pub(crate) use text::{shape, text, texts};
pub(crate) use through_slot::through_slot;
pub(crate) use thunk::thunk;
pub(crate) use touched::{Touched, touched};
pub(crate) use values::memory_numbers;
