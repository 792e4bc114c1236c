//! The methods other than LoRA, one file each, and the list of them.

mod adalora;
mod boft;
mod c3a;
mod cayley;
mod delora;
mod differences;
mod form;
mod glora;
mod gralora;
mod hira;
mod hra;
mod ia3;
mod locon;
mod loha;
mod lokr;
mod lycoris_glora;
mod lycoris_ia3;
mod lycoris_oft;
mod miss;
mod named;
mod oft;
mod randlora;
mod refused;
mod road;
mod setting;
mod shira;
mod tucker;
mod vblora;
mod vera;

use std::sync::Arc;

use super::method::Method;
use super::parts::{Context, Parts};
use crate::error::Result;

/// Takes a method's tensors out of the parts of a module; `None` if it is another method's module.
pub type Gather = fn(&mut Parts, &Context<'_>) -> Result<Option<Arc<dyn Method>>>;

/// A method and how its tensors are recognised.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Recognises its tensors.
    pub gather: Gather,
}

/// All methods, in the order they are asked: one that claims tensors of another comes first.
pub const KINDS: &[Kind] = &[
    Kind { name: "LoHa", gather: loha::gather },
    Kind { name: "LoKr", gather: lokr::gather },
    Kind { name: "LoCon (Tucker)", gather: locon::gather },
    Kind { name: "GLoRA (LyCORIS)", gather: lycoris_glora::gather },
    Kind { name: "OFT (LyCORIS)", gather: lycoris_oft::gather },
    Kind { name: "IA³ (LyCORIS)", gather: lycoris_ia3::gather },
    Kind { name: "full difference", gather: differences::gather },
    Kind { name: "not mergeable", gather: refused::gather },
    adalora::KIND,
    vera::KIND,
    vera::PROBABILISTIC,
    vblora::KIND,
    delora::KIND,
    gralora::KIND,
    miss::KIND,
    randlora::KIND,
    ia3::KIND,
    hira::KIND,
    hra::KIND,
    oft::KIND,
    boft::KIND,
    c3a::KIND,
    road::KIND,
    shira::KIND,
    glora::KIND,
];
