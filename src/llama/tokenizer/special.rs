//! Tokens with a meaning: which begin and end a text, whether they are added to it, and how a chat is laid out.
//!
//! The files say it in several places: tokens by text in tokenizer_config.json, by number in config.json, and whether they are
//! added in the `post_processor` of tokenizer.json, which wins over `add_bos_token` of tokenizer_config.json.

use serde_json::{Map, Value as Json};

use super::Files;
use crate::error::Result;
use crate::formats::gguf::{Array, Value};
use crate::formats::side;
use crate::io::read_small;
use crate::limits::MAX_JSON_BYTES;

/// The kinds that are looked for.
pub(super) const TYPES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// What a kind is called in a file; the others have no key.
const IDS: [(&str, &str); 8] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"),
    ("pad", "padding"),
    ("mask", "mask"),
    ("eot", "eot"),
    ("eom", "eom"),
];

/// Which are added to a text.
const ADDED: [&str; 3] = ["bos", "eos", "sep"];

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Special {
    types: Vec<String>,
    /// Numbers from here on are no tokens.
    limit: Option<u64>,
    ids: Vec<(String, u64)>,
    adds: Vec<(String, bool)>,
    templates: Vec<(String, String)>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

/// The texts of tokens by kind, as tokenizer_config.json has them and as templates correct it.
struct Texts {
    config: Map<String, Json>,
    bos: Option<String>,
    eos: Option<String>,
    cls: Option<String>,
    sep: Option<String>,
}

/// The text of an entry: itself, or the `content` of a token.
fn content(entry: Option<&Json>) -> Option<String> {
    match entry? {
        Json::String(text) => Some(text.clone()),
        Json::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

impl Special {
    /// Looks for tokens of these `types`.
    ///
    /// # Errors
    /// When the chat template cannot be read.
    pub fn load(files: &Files, types: &[&str], limit: Option<u64>) -> Result<Self> {
        let mut found = Self { types: types.iter().map(|kind| (*kind).to_owned()).collect(), limit, ..Self::default() };
        let mut texts = Texts {
            bos: content(files.config.get("bos_token")),
            eos: content(files.config.get("eos_token")),
            cls: content(files.config.get("cls_token")),
            sep: content(files.config.get("sep_token")),
            config: files.config.clone(),
        };
        if let Some(fast) = &files.fast {
            fast.get("normalizer").into_iter().for_each(|step| found.normalizer(step));
            found.processors(fast, &mut texts);
        }
        if !files.config.is_empty() {
            found.templates(files)?;
            found.tokens(files, &texts);
        }
        for kind in found.types.clone() {
            let id = files.model.get(&format!("{kind}_token_id")).and_then(Json::as_u64);
            id.into_iter().for_each(|id| found.set(&kind, id));
        }
        Ok(found)
    }

    /// The same without chat templates.
    pub fn without_template(self) -> Self {
        Self { templates: Vec::new(), ..self }
    }

    fn set(&mut self, kind: &str, id: u64) {
        let fits = self.limit.is_none_or(|limit| id < limit);
        if fits && self.ids.iter().all(|(known, _)| known != kind) {
            self.ids.push((kind.to_owned(), id));
        }
    }

    fn add(&mut self, kind: &str, add: bool) {
        match self.adds.iter_mut().find(|(known, _)| known == kind) {
            Some((_, old)) => *old = add,
            None => self.adds.push((kind.to_owned(), add)),
        }
    }

    fn adds(&self, kind: &str) -> bool {
        self.adds.iter().any(|(known, _)| known == kind)
    }

    fn normalizer(&mut self, step: &Json) {
        let flag = |key: &str| step.get(key).and_then(Json::as_bool);
        match step.get("type").and_then(Json::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                self.lowercase = flag("lowercase").or(self.lowercase);
                self.strip_accents = flag("strip_accents").or(self.strip_accents);
            }
            Some("Sequence") => {
                let steps = step.get("normalizers").and_then(Json::as_array);
                steps.into_iter().flatten().for_each(|step| self.normalizer(step));
            }
            _ => {}
        }
    }

    /// Which tokens `post_processor` puts around a text.
    fn processors(&mut self, fast: &Map<String, Json>, texts: &mut Texts) {
        if texts.bos.is_none() && texts.cls.is_some() {
            texts.bos.clone_from(&texts.cls);
            texts.name("bos");
        }
        if texts.eos.is_none() && texts.sep.is_some() {
            texts.eos.clone_from(&texts.sep);
            texts.name("eos");
        }
        let Some(processor) = fast.get("post_processor").filter(|processor| !processor.is_null()) else { return };
        let several = processor.get("processors").and_then(Json::as_array);
        let one = std::slice::from_ref(processor);
        for step in several.map_or(one, Vec::as_slice) {
            match step.get("type").and_then(Json::as_str) {
                Some("ByteLevel") => {
                    for kind in ["bos", "eos"] {
                        if !self.adds(kind) {
                            self.add(kind, false);
                        }
                    }
                }
                Some("RobertaProcessing") => ["bos", "eos", "sep"].iter().for_each(|kind| self.add(kind, true)),
                Some("TemplateProcessing") => self.template(step, texts),
                _ => {}
            }
        }
    }

    /// What stands around one text, and between two.
    fn template(&mut self, step: &Json, texts: &mut Texts) {
        let items = |key: &str| step.get(key).and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
        let id = |item: Option<&Json>| content(item?.get("SpecialToken").and_then(|token| token.get("id")));
        let single = items("single");
        let ends = single.len() > 1;
        let (first, last) = (id(single.first().filter(|_| ends)), id(single.last().filter(|_| ends)));
        if let Some(first) = &first {
            if ![&texts.bos, &texts.cls].contains(&&Some(first.clone())) {
                if texts.bos.is_none() {
                    texts.bos = Some(first.clone());
                    texts.name("bos");
                }
                if texts.cls.is_none() {
                    texts.cls = Some(first.clone());
                    texts.name("cls");
                }
            }
            self.add("bos", [texts.bos.as_ref(), texts.cls.as_ref()].contains(&Some(first)));
        }
        if let Some(last) = &last {
            if texts.eos.as_ref() != Some(last) {
                self.move_end(texts);
                texts.eos = Some(last.clone());
                texts.name("eos");
            }
            self.add("eos", true);
        }
        let pair = items("pair");
        let start = usize::from(first.is_some() && id(pair.first()) == first);
        let stop = pair.len() - usize::from(last.is_some() && !pair.is_empty() && id(pair.last()) == last);
        let inner = pair.get(start..stop).unwrap_or_default();
        let sequence = |item: &Json| content(item.get("Sequence").and_then(|sequence| sequence.get("id")));
        if let [a, between @ .., b] = inner
            && sequence(a).as_deref() == Some("A")
            && sequence(b).as_deref() == Some("B")
            && !between.is_empty()
        {
            let separates =
                |item: Option<&Json>| id(item).is_some_and(|id| [&texts.sep, &texts.eos].contains(&&Some(id)));
            let separated =
                (separates(between.first()) && last.is_none()) || (between.len() == 2 && separates(between.get(1)));
            self.add("sep", separated);
            if separated && texts.sep.is_none() {
                texts.sep.clone_from(&texts.eos);
                texts.name("sep");
            }
        }
    }

    /// A text ends with another token than the config says: that of the config ends a turn.
    fn move_end(&mut self, texts: &mut Texts) {
        for kind in ["eot", "eom"] {
            if self.types.iter().all(|known| known != kind) {
                self.types.push(kind.to_owned());
                let end = texts.eos.clone().map_or(Json::Null, Json::String);
                texts.config.insert(format!("{kind}_token"), end);
                return;
            }
        }
    }

    fn tokens(&mut self, files: &Files, texts: &Texts) {
        let added = files.added();
        for kind in self.types.clone() {
            if let Some(add) = texts.config.get(&format!("add_{kind}_token")).and_then(Json::as_bool)
                && !self.adds(&kind)
            {
                self.add(&kind, add);
            }
            if let Some(text) = content(texts.config.get(&format!("{kind}_token")))
                && let Some(token) = added.iter().find(|token| token.text == text)
            {
                self.set(&kind, token.id);
            }
        }
    }

    fn templates(&mut self, files: &Files) -> Result<()> {
        let alone = || -> Result<Option<Json>> {
            if let Some(jinja) = side::find(&files.directory, "chat_template.jinja")? {
                let text = String::from_utf8_lossy(&read_small(&jinja, MAX_JSON_BYTES)?).into_owned();
                return Ok(Some(text.into()));
            }
            let said = side::read(&files.directory, "chat_template.json")?;
            Ok(said.and_then(|said| said.get("chat_template").cloned()))
        };
        let template = match files.config.get("chat_template") {
            Some(template) => Some(template.clone()),
            None => alone()?,
        };
        match template {
            Some(Json::String(text)) => self.templates.push(("default".into(), text)),
            Some(Json::Array(several)) => {
                let named = several.iter().filter_map(|one| {
                    Some((one.get("name")?.as_str()?.to_owned(), one.get("template")?.as_str()?.to_owned()))
                });
                self.templates.extend(named);
            }
            _ => {}
        }
        Ok(())
    }

    /// The keys of all that.
    pub fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = Vec::new();
        for (kind, id) in &self.ids {
            let name = IDS.iter().find(|(known, _)| known == kind).map(|(_, name)| *name);
            if let (Some(name), Ok(id)) = (name, u32::try_from(*id)) {
                keys.push((format!("tokenizer.ggml.{name}_token_id"), Value::U32(id)));
            }
        }
        for (kind, add) in self.adds.iter().filter(|(kind, _)| ADDED.contains(&kind.as_str())) {
            keys.push((format!("tokenizer.ggml.add_{kind}_token"), Value::Bool(*add)));
        }
        keys.extend(self.template_keys());
        for (name, flag) in [("lowercase", self.lowercase), ("strip_accents", self.strip_accents)] {
            keys.extend(flag.map(|flag| (format!("tokenizer.ggml.normalizer.{name}"), Value::Bool(flag))));
        }
        keys
    }

    fn template_keys(&self) -> Vec<(String, Value)> {
        let plain = |name: &str| -> String {
            name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
        };
        let (default, named): (Vec<_>, Vec<_>) = self.templates.iter().partition(|(name, _)| name == "default");
        let named = named.iter().filter(|(name, _)| !name.is_empty());
        let mut keys: Vec<(String, Value)> = Vec::new();
        let mut names = Vec::new();
        for (name, text) in named {
            names.push(plain(name));
            keys.push((format!("tokenizer.chat_template.{}", plain(name)), text.as_str().into()));
        }
        if !names.is_empty() {
            let names = Array::of_texts(names.iter().map(String::as_str));
            keys.push(("tokenizer.chat_templates".into(), Value::Array(names)));
        }
        keys.extend(default.last().map(|(_, text)| ("tokenizer.chat_template".to_owned(), text.as_str().into())));
        keys
    }
}

impl Texts {
    /// Puts the text of a kind into the config, where there is one.
    fn name(&mut self, kind: &str) {
        let text = match kind {
            "bos" => &self.bos,
            "eos" => &self.eos,
            "cls" => &self.cls,
            _ => &self.sep,
        };
        if !self.config.is_empty()
            && let Some(text) = text
        {
            self.config.insert(format!("{kind}_token"), text.as_str().into());
        }
    }
}
