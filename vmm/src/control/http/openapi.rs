//! The OpenAPI 3.1 document, made from the table of routes and the types that
//! are really read and written, so that it cannot say anything else.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::super::api;
use super::answer::{EVENTS, Failure, JSON, METRICS};
use super::routes::{Action, NewPolicy, Page, ROUTES, Region, Route};
use super::{MAX_BODY, MAX_HEAD};

/// The document as text, with a final line break.
pub fn text() -> &'static str {
    // Texts, numbers and maps with texts as keys can always be written.
    static TEXT: LazyLock<String> =
        LazyLock::new(|| serde_json::to_string_pretty(&document()).unwrap_or_default() + "\n");
    &TEXT
}

fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES.iter() {
        let operation = operation(route, &mut schemas);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_lowercase()] = operation;
    }
    let description = format!(
        "A machine that runs, behind its API socket: neap run --api-socket PATH, and \
         curl --unix-socket PATH http://localhost/v1/status. A request's head has at most {} KiB \
         and its body {} KiB, and each may take 10 s; a connection is kept without a request for \
         as long.",
        MAX_HEAD >> 10,
        MAX_BODY >> 10
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Neap",
            "version": env!("CARGO_PKG_VERSION"),
            "description": description,
            "license": { "name": "Apache-2.0 OR BSD-3-Clause", "identifier": env!("CARGO_PKG_LICENSE") }
        },
        "servers": [{ "url": "http://localhost", "description": "Any host name will do." }],
        "paths": paths,
        "components": { "schemas": schemas.finish() }
    })
}

/// Schemas of the types, each once.
struct Schemas(SchemaGenerator);

impl Schemas {
    fn new() -> Self {
        // The dialect of OpenAPI 3.1 is JSON Schema 2020-12.
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into());
        Self(settings.into_generator())
    }

    fn of<T: JsonSchema>(&mut self) -> Value {
        self.0.subschema_for::<T>().to_value()
    }

    fn finish(mut self) -> Value {
        let mut schemas = Value::Object(self.0.take_definitions(true));
        without_links(&mut schemas);
        schemas
    }
}

/// Descriptions come from the types' comments, whose links mean nothing
/// elsewhere: ``[`Job`](super::Job)`` becomes `Job`.
fn without_links(value: &mut Value) {
    match value {
        Value::String(text) if text.contains("[`") => {
            let mut plain = String::new();
            let mut rest = text.as_str();
            while let Some((before, link)) = rest.split_once("[`") {
                plain.push_str(before);
                let (name, after) = link.split_once("`]").unwrap_or((link, ""));
                plain.push_str(name.rsplit("::").next().unwrap_or(name));
                rest = after
                    .strip_prefix('(')
                    .and_then(|target| target.split_once(')'))
                    .map_or(after, |(_, after)| after);
            }
            plain.push_str(rest);
            *text = plain;
        }
        Value::Array(values) => values.iter_mut().for_each(without_links),
        Value::Object(map) => map.values_mut().for_each(without_links),
        _ => {}
    }
}

fn content(kind: &str, schema: Value) -> Value {
    json!({ kind: { "schema": schema } })
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let (id, summary) = words(route.action);
    let mut operation = json!({ "operationId": id, "summary": summary });
    let parameters = parameters(route, schemas);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(schema) = request_body(route.action, schemas) {
        operation["requestBody"] = json!({ "required": true, "content": content(JSON, schema) });
    }
    let failure = schemas.of::<Failure<'static>>();
    let mut responses = Map::new();
    for (status, description, content) in answers(route.action, schemas) {
        let mut response = json!({ "description": description });
        if let Some(content) = content {
            response["content"] = content;
        }
        responses.insert(status.to_owned(), response);
    }
    let error = json!({
        "description": "Why not: 400 no request as described here, 404 nothing of that number, \
                        408 too slow, 409 the machine does something else, 413 too long, 422 it \
                        cannot be done as it was asked, 500 Neap or the kernel failed, 501 this \
                        machine cannot do it, 503 the machine is over or has too many clients.",
        "content": content(JSON, failure)
    });
    responses.insert("default".to_owned(), error);
    operation["responses"] = responses.into();
    operation
}

fn words(action: Action) -> (&'static str, &'static str) {
    match action {
        Action::Status => ("status", "How the machine and its memory are"),
        Action::Residency => ("residency", "Where guest memory is, in parts"),
        Action::Migrate => ("migrate", "Move guest memory"),
        Action::Evacuate => ("evacuate", "Bring home everything that is in a device region"),
        Action::Pause => ("pause", "Park the vCPUs"),
        Action::Resume => ("resume", "Let the vCPUs go on"),
        Action::Pin => ("pin", "Hold guest memory where it is"),
        Action::Unpin => ("unpin", "Let go of held memory"),
        Action::Unplug => ("unplug", "Empty a device region and take it away"),
        Action::Plug => ("plug", "Give a device region back, or another in its place"),
        Action::FailPage => ("failPage", "Make a page of host memory fail, for tests"),
        Action::Jobs => ("jobs", "The jobs that there are, and the last that ended"),
        Action::Job => ("job", "How a job is"),
        Action::Cancel => ("cancel", "End a job between two granules"),
        Action::Policy => ("policy", "What moves by itself"),
        Action::SetPolicy => ("setPolicy", "Have another policy decide from now on"),
        Action::Events => ("events", "What happens, as it happens"),
        Action::OpenApi => ("openapi", "This document"),
        Action::Metrics => ("metrics", "Everything that is counted, for Prometheus"),
    }
}

fn parameters(route: &Route, schemas: &mut Schemas) -> Vec<Value> {
    let in_query = |name: &str, description: &str, schema: Value| json!({ "name": name, "in": "query", "description": description, "schema": schema });
    let flag = || json!({ "type": "boolean", "default": false });
    match route.action {
        Action::Status => {
            vec![in_query("verify", "Ask the kernel how much memory each tier has, too.", flag())]
        }
        Action::Residency => vec![
            in_query("from", "First address to tell of.", schemas.of::<api::Hex>()),
            in_query("verify", "Ask the kernel too.", flag()),
        ],
        Action::Migrate | Action::Evacuate => vec![in_query(
            "wait",
            "Answer when it is done; it ends when the client goes away.",
            flag(),
        )],
        _ if route.path.ends_with("{id}") => vec![json!({
            "name": "id",
            "in": "path",
            "required": true,
            "schema": { "type": "integer", "minimum": 0 }
        })],
        _ => Vec::new(),
    }
}

fn request_body(action: Action, schemas: &mut Schemas) -> Option<Value> {
    match action {
        Action::Migrate => Some(schemas.of::<api::Migrate>()),
        Action::Evacuate => Some(schemas.of::<api::Evacuate>()),
        Action::Pin => Some(schemas.of::<api::Range>()),
        Action::SetPolicy => Some(schemas.of::<NewPolicy>()),
        Action::Unplug => Some(schemas.of::<Region>()),
        Action::Plug => Some(schemas.of::<api::Plug>()),
        Action::FailPage => Some(schemas.of::<Page>()),
        _ => None,
    }
}

type Described = (&'static str, &'static str, Option<Value>);

fn answers(action: Action, schemas: &mut Schemas) -> Vec<Described> {
    let json = |schema| Some(content(JSON, schema));
    let done = |content| vec![("200", "Done.", content)];
    match action {
        Action::Status => done(json(schemas.of::<api::Status>())),
        Action::Residency => done(json(schemas.of::<api::Residency>())),
        Action::Migrate | Action::Evacuate => vec![
            ("200", "Done (wait=true).", json(schemas.of::<api::Migrated>())),
            ("202", "Begun, as a job at Location.", json(schemas.of::<api::Job>())),
        ],
        Action::Pause | Action::Resume => done(json(schemas.of::<api::Lifecycle>())),
        Action::Pin => vec![("201", "Held, as Location.", json(schemas.of::<api::Pinned>()))],
        Action::Unpin => vec![("204", "Let go of.", None)],
        Action::Unplug => done(json(schemas.of::<api::Unplugged>())),
        Action::Plug => done(json(schemas.of::<api::Plugged>())),
        Action::FailPage => done(json(schemas.of::<api::PageFailed>())),
        Action::Jobs => done(json(schemas.of::<api::Jobs>())),
        Action::Job => done(json(schemas.of::<api::Job>())),
        Action::Cancel => vec![("202", "Asked for.", json(schemas.of::<api::Job>()))],
        Action::Policy | Action::SetPolicy => done(json(schemas.of::<api::Policy>())),
        Action::Events => {
            let event = schemas.of::<api::Event>();
            let text = json!({ "type": "string" });
            let mut content = content(EVENTS, text);
            // OpenAPI 3.1 has no word for the parts of a stream.
            content[EVENTS]["x-event"] = event;
            vec![("200", "Server-sent events; the data of each is an Event.", Some(content))]
        }
        Action::OpenApi => done(json(json!({ "type": "object" }))),
        Action::Metrics => done(Some(content(METRICS, json!({ "type": "string" })))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 10);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_every_answer_a_description() {
        let document = document();
        let mut names = BTreeSet::new();
        for operation in document["paths"].as_object().unwrap().values() {
            for operation in operation.as_object().unwrap().values() {
                assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()));
                for answer in operation["responses"].as_object().unwrap().values() {
                    assert!(answer["description"].is_string());
                }
            }
        }
        assert_eq!(names.len(), ROUTES.len());
    }

    #[test]
    fn links_of_comments_are_taken_out() {
        let mut value = json!({ "description": "See [`Job`](super::Job) and [`api::MAX`]." });
        without_links(&mut value);
        assert_eq!(value["description"], "See Job and MAX.");
    }
}
