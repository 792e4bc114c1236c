//! Experts as mlx-lm has them: one tensor of three dimensions for a projection of a layer, `lora_a` `[E, r, in]`, `lora_b`
//! `[E, out, r]`, neither turned; gpt-oss keeps them below `experts`, all others below `switch_mlp`.

use crate::dialects::evened::Evened;
use crate::dialects::experts::sides::Family;
use crate::dialects::experts::together::{Model, count, is_gated, singles};
use crate::dialects::files::{Facts, Files};
use crate::dialects::pieces::Pieces;
use crate::error::Result;
use crate::naming::Role;
use crate::naming::experts::Part;
use crate::naming::scheme::Scheme;
use crate::pairs::matrix::Grid;
use crate::tensor::Shape;

/// Takes the pairs of experts out of `pieces` and writes them; gives the paths of their modules.
///
/// # Errors
/// When how many experts there are is not known.
pub fn write(
    pieces: &mut Pieces,
    facts: &Facts<'_>,
    scheme: &Scheme,
    evened: &mut Evened,
    files: &mut Files,
) -> Result<Vec<String>> {
    let family = Family::of(&facts.adapter.config, facts.model);
    let model = Model { family: &family, experts: facts.model.and_then(|model| model.experts) };
    let mut alternate = family.is_interleaved();
    let lists = singles(pieces, &mut alternate)?;
    let mut paths = Vec::new();
    for (list, own) in lists {
        let experts = count(model, &list, &own)?;
        let block = list.strip_suffix("experts").unwrap_or(&list);
        // What is one matrix in lists belongs to gpt-oss.
        let module = if alternate { list.clone() } else { format!("{block}switch_mlp") };
        let gated = is_gated(&list);
        let names = [(Part::Gate, "gate_proj"), (Part::Up, if gated { "up_proj" } else { "fc1" })];
        let names = names.into_iter().chain([(Part::Down, if gated { "down_proj" } else { "fc2" })]);
        for (part, name) in names {
            let Some(((..), sample)) = own.iter().find(|((_, own), _)| *own == part) else { continue };
            let (rank, inputs, outputs) = (evened.rank, sample.down.size.1, sample.up.size.0);
            let mut down = Grid::zero((experts * rank, inputs));
            let mut up = Grid::zero((experts * outputs, rank));
            for expert in 0..experts {
                let Some(pair) = own.get(&(expert, part)) else { continue };
                let (a, b) = evened.factors(pair, files);
                down = down.with(a, (expert * rank, 0));
                up = up.with(b, (expert * outputs, 0));
            }
            let path = format!("{module}.{name}");
            for (role, grid, shape) in
                [(Role::Down, down, [experts, rank, inputs]), (Role::Up, up, [experts, outputs, rank])]
            {
                let key = scheme.print(&path, &role).expect("every scheme has the roles of LoRA");
                files.tensors.push((key, Shape::from(shape), grid.bytes(facts.float)));
            }
            paths.push(path);
        }
    }
    Ok(paths)
}
