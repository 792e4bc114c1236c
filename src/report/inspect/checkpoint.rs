//! A model.

use super::numbers::{count, exact, first, plural, shape, share};
use super::page::{MAX_NAME, MAX_ROWS, Page, shorten};
use super::{dtypes, gguf, made_by, shards, stored, training};
use crate::ops::inspect::{CheckpointFacts, Group, TensorFacts};
use crate::report::{shown, size};

/// Everything about a checkpoint but its problems.
pub fn describe(page: &mut Page, facts: &CheckpointFacts, verdict: &str) {
    let weights = &facts.weights;
    page.title(&format!("{}: checkpoint, {verdict}", shown(&facts.path)));
    super::problems(page, &facts.problems, &facts.header);
    let model = [facts.architectures.join(", "), facts.model_type.clone().unwrap_or_default()];
    let model = if model.iter().all(String::is_empty) {
        [facts.family.map_or_else(String::new, |family| format!("{family} (by its names)")), String::new()]
    } else {
        model
    };
    let model = match &facts.gguf {
        Some(own) => gguf::model(own),
        None => model.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "),
    };
    page.line("model", &model);
    let uncounted = match weights.uncounted_tensors {
        0 => String::new(),
        tensors => format!("; {tensors} tensors that are not floating point are not counted"),
    };
    page.line("parameters", &format!("{}{uncounted}", exact(weights.parameters)));
    stored(page, weights);
    facts.gguf.iter().for_each(|facts| gguf::lines(page, facts));
    if let Some(values) = &facts.values {
        let mut said = format!("{} read", plural(values.read, "tensor"));
        if facts.values.as_ref().is_some_and(|values| values.problems().is_empty()) {
            said += ": no NaN, no infinity, no matrix of zeros, no matrix twice";
        }
        if values.not_decoded > 0 {
            said += &format!("; {} of codes or whole numbers compared only", plural(values.not_decoded, "tensor"));
        }
        page.line("checked", &said);
    }
    made_by::line(page, &facts.checkpoint);
    let own = weights.metadata_keys.iter().filter(|key| facts.gguf.is_none() && !training::is_told(key));
    let own = own.map(String::as_str);
    page.line("metadata", &first(own.collect::<Vec<_>>().into_iter(), MAX_ROWS));
    training::describe(page, &facts.header);
    if let Some(embedding) = &facts.head_tied_to {
        page.line("head", &format!("tied to `{embedding}`"));
    }
    for found in &facts.quantisation {
        let modules =
            if found.modules > 0 { format!(" in {}", plural(found.modules, "module")) } else { String::new() };
        let mut parts = vec![found.method.clone()];
        parts.extend(found.bits.map(|bits| plural(usize::try_from(bits).unwrap_or_default(), "bit")));
        parts.extend(found.group.clone());
        parts.extend(found.details.iter().cloned());
        parts.dedup();
        let elements = found.elements.map_or_else(String::new, |elements| format!(", {} weights", count(elements)));
        page.line("quantised", &format!("{}{modules}{elements}", parts.join(", ")));
    }
    let plain = facts.plain_beside_quantised.iter().map(|(module, count)| match count {
        1 => module.clone(),
        count => format!("{module} × {count}"),
    });
    let plain: Vec<String> = plain.collect();
    if !plain.is_empty() {
        page.line(
            "plain",
            &format!("{} (matrices that are not quantised)", first(plain.iter().map(String::as_str), MAX_ROWS)),
        );
    }
    dtypes(page, weights);
    let row = |group: &Group| {
        vec![
            shorten(&group.name, MAX_NAME),
            group.tensors.to_string(),
            count(group.elements),
            size(group.bytes),
            share(group.bytes, weights),
        ]
    };
    page.table(&["modules", "tensors", "elements", "bytes", "share"], facts.groups.iter().map(row), MAX_ROWS);
    let row = |tensor: &TensorFacts| {
        vec![shorten(&tensor.name, MAX_NAME), tensor.dtype.clone(), shape(tensor), size(tensor.bytes)]
    };
    page.table(&["largest", "dtype", "shape", "bytes"], facts.largest.iter().map(row), MAX_ROWS);
    if weights.files.len() > 1 {
        shards(page, weights);
    }
}
