//! How the engine's modules fail: [`Error`] in a box, so that handing it on, which is done in hundreds of places,
//! moves one word; the small applier has to be small.

use crate::prelude::*;
use crate::{Error, InTheWay};
use core::fmt::Arguments;

pub(crate) type Failure = Box<Error>;

/// [`Error::Refused`] with this text.
pub(crate) fn refused(text: Arguments<'_>) -> Failure {
    Box::new(Error::Refused(alloc::fmt::format(text)))
}

/// [`Error::Unusable`] with this text.
pub(crate) fn unusable(text: Arguments<'_>) -> Failure {
    Box::new(Error::Unusable(alloc::fmt::format(text)))
}

/// [`Error::Busy`] with one line.
pub(crate) fn busy(line: InTheWay) -> Failure {
    Box::new(Error::Busy(vec![line]))
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        *failure
    }
}
