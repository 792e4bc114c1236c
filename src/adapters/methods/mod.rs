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
mod plain;
mod randlora;
pub mod refused;
mod road;
mod shira;
#[cfg(test)]
mod toy;
mod tucker;
mod vblora;
mod vera;

use super::kind::Kind;

/// All methods, in the order they are asked: one that claims tensors of another comes first.
pub static KINDS: &[&Kind] = &[
    &plain::LORA,
    &plain::ROWS,
    &plain::NORMS,
    &loha::KIND,
    &lokr::KIND,
    &locon::KIND,
    &lycoris_glora::KIND,
    &lycoris_oft::KIND,
    &lycoris_ia3::KIND,
    &differences::KIND,
    &refused::RESHAPED,
    &refused::SPARSE,
    &adalora::KIND,
    &vera::KIND,
    &vera::PROBABILISTIC,
    &vblora::KIND,
    &delora::KIND,
    &gralora::KIND,
    &miss::KIND,
    &randlora::KIND,
    &ia3::KIND,
    &hira::KIND,
    &hra::KIND,
    &oft::KIND,
    &boft::KIND,
    &c3a::KIND,
    &road::KIND,
    &shira::KIND,
    &glora::KIND,
    #[cfg(test)]
    &toy::KIND,
];

/// All of them, and those of PEFT that are only known by name.
pub fn known() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().copied().chain(&refused::OF_PEFT)
}

/// The method of this `peft_type`.
pub fn of_type(peft_type: &str) -> Option<&'static Kind> {
    known().find(|kind| kind.peft_types.contains(&peft_type))
}
