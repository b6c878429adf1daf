//! Requests, batches of them, and their responses.
//!
//! The envelope is walked member by member over its text, because an id has to come back as it was sent: `1.0`, `1e3` and
//! thirty digits are numbers that no parsed form keeps. What each member holds is read by `serde_json`.

use std::fmt::{Display, Write};

use rustix::io::Errno;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::plain::Plain;
use super::{Methods, Room, RpcError};

/// The most requests in a batch: each costs far more memory than its text.
const BATCH: usize = 1024;

/// The most members that an object is read for. Four are known; those beyond are there to be named as unknown.
const MEMBERS: usize = 16;

/// What one JSON text asks for.
#[derive(Debug)]
pub enum Message {
    /// One request.
    Single(Request),
    /// An array of them, never empty.
    Batch(Vec<Request>),
}

/// A request, well-formed or not.
#[derive(Debug, PartialEq)]
pub struct Request {
    /// To whom the answer goes. A notification has none and gets no answer. A request that is not well-formed
    /// always has one, if need be null.
    pub id: Option<Id>,
    /// What is to be done, or why that could not be read.
    pub call: Result<Call, RpcError>,
}

/// A method and what it is given.
#[derive(Debug, PartialEq)]
pub struct Call {
    /// Its name.
    pub method: String,
    /// An object, an array, or null for none.
    pub params: Value,
}

/// The id of a request: the JSON text of a string, a number or null, exactly as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id(String);

impl Message {
    /// Reads one JSON value. An error goes to a null id; [`RpcError::PARSE_ERROR`] says that the text is not JSON.
    pub fn parse(text: &[u8]) -> Result<Message, RpcError> {
        let text = std::str::from_utf8(text).map_err(RpcError::parse_error)?;
        let mut walk = Walk(text);
        let message = match walk.next_byte() {
            Some(b'[') => match walk.elements()? {
                texts if texts.is_empty() => {
                    Message::Single(Request::refused("the batch is empty"))
                }
                texts => {
                    Message::Batch(texts.into_iter().map(Request::parse).collect::<Result<_, _>>()?)
                }
            },
            _ => Message::Single(Request::parse(walk.value()?)?),
        };
        match walk.next_byte() {
            None => Ok(message),
            Some(_) => Err(RpcError::parse_error("more follows the value")),
        }
    }

    /// Calls what is asked for. The bytes of the answer end in a newline, as SPDK's do; notifications have none. Of
    /// a batch that has filled the room, the rest is not called.
    pub async fn answer(self, methods: &dyn Methods, room: &mut dyn Room) -> Option<Vec<u8>> {
        let mut text = String::new();
        match self {
            Message::Single(request) => request.answer(methods, room, &mut text).await,
            Message::Batch(requests) => {
                for mut request in requests {
                    let start = text.len();
                    if start > 0 && request.id.is_some() && room.is_full() {
                        let why = "the batch's answers so far are all that can wait for you";
                        request.call = Err(busy(why));
                    }
                    request.answer(methods, room, &mut text).await;
                    if text.len() > start {
                        text.insert(start, if start == 0 { '[' } else { ',' });
                    }
                }
                if !text.is_empty() {
                    text.push(']');
                }
            }
        }
        (!text.is_empty()).then(|| {
            text.push('\n');
            text.into_bytes()
        })
    }
}

impl Request {
    /// Reads one value. What is JSON but not a request is refused in its answer.
    fn parse(text: &str) -> Result<Request, RpcError> {
        if !text.starts_with('{') {
            return Ok(Request::refused("not an object"));
        }
        let members = Walk(text).members()?;
        let id = members.iter().find(|(key, _)| key == "id").map(|(_, text)| Id::parse(text));
        Ok(match id {
            Some(None) => Request::refused("the id is neither string nor number nor null"),
            None => match Call::parse(&members) {
                Err(error) => Request { id: Some(Id::null()), call: Err(error) },
                call => Request { id: None, call },
            },
            Some(id) => Request { id, call: Call::parse(&members) },
        })
    }

    fn refused(why: &str) -> Request {
        Request { id: Some(Id::null()), call: Err(RpcError::invalid_request(why)) }
    }

    /// Carries it out and appends the response to `text`; if there is no room for that, an error.
    async fn answer(self, methods: &dyn Methods, room: &mut dyn Room, text: &mut String) {
        let outcome = match self.call {
            Ok(call) => methods.call(&call.method, call.params).await,
            Err(error) => Err(error),
        };
        if let Some(id) = self.id {
            let start = text.len();
            id.respond(outcome, text);
            let length = text.len() - start;
            if !room.take(length) {
                text.truncate(start);
                let why = format!("no room for an answer of {length} bytes: take those that wait");
                id.respond(Err(busy(why)), text);
            }
        }
    }
}

fn busy(why: impl Display) -> RpcError {
    RpcError::errno(Errno::BUSY.raw_os_error(), format!("Device or resource busy: {why}"))
}

impl Call {
    fn parse(members: &[(String, &str)]) -> Result<Call, RpcError> {
        let mut method = None;
        let mut params = None;
        for (index, (key, text)) in members.iter().enumerate() {
            if members.iter().take(index).any(|(earlier, _)| earlier == key) {
                return Err(RpcError::invalid_request(format_args!("'{key}' stands there twice")));
            }
            match key.as_str() {
                "id" => {}
                "jsonrpc" if read::<String>(text).is_ok_and(|version| version == "2.0") => {}
                "jsonrpc" => return Err(RpcError::invalid_request("'jsonrpc' is not \"2.0\"")),
                "method" => {
                    let name = read::<String>(text);
                    method = Some(
                        name.map_err(|_| RpcError::invalid_request("'method' is not a string"))?,
                    );
                }
                "params" => {
                    // Well-formed, but with a number or a string that nobody can hold.
                    let value = read::<Plain>(text).map_err(RpcError::invalid_params_because)?.0;
                    if !matches!(value, Value::Object(_) | Value::Array(_) | Value::Null) {
                        let why = "'params' is neither object nor array";
                        return Err(RpcError::invalid_request(why));
                    }
                    params = Some(value);
                }
                _ => return Err(RpcError::invalid_request(format_args!("unknown key '{key}'"))),
            }
        }
        let method = method.ok_or_else(|| RpcError::invalid_request("there is no 'method'"))?;
        Ok(Call { method, params: params.unwrap_or(Value::Null) })
    }
}

impl Id {
    /// The id of an answer to what had none that could be read.
    pub fn null() -> Id {
        Id(String::from("null"))
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Id> {
        match text.as_bytes().first()? {
            // A string may still hold half of a character, which must not go out again.
            b'"' => read::<String>(text).is_ok(),
            first => matches!(first, b'-' | b'0'..=b'9' | b'n'),
        }
        .then(|| Id(String::from(text)))
    }

    /// Appends the response with this id to `text`.
    pub fn respond(&self, outcome: Result<Value, RpcError>, text: &mut String) {
        let (key, value) = match outcome {
            Ok(result) => ("result", result),
            Err(RpcError { code, message }) => {
                ("error", serde_json::json!({ "code": code, "message": message }))
            }
        };
        // Writing to a string cannot fail.
        let _ = write!(text, r#"{{"jsonrpc":"2.0","id":{},"{key}":{value}}}"#, self.0);
    }

    /// A response by itself, as it goes out.
    pub fn response(&self, outcome: Result<Value, RpcError>) -> Vec<u8> {
        let mut text = String::new();
        self.respond(outcome, &mut text);
        text.push('\n');
        text.into_bytes()
    }
}

fn read<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text)
}

/// What of a JSON text has not been read yet.
struct Walk<'a>(&'a str);

impl<'a> Walk<'a> {
    /// The next byte that is not blank, left where it is.
    fn next_byte(&mut self) -> Option<u8> {
        self.0 = self.0.trim_start_matches([' ', '\t', '\r', '\n']);
        self.0.as_bytes().first().copied()
    }

    /// Whether `expected` stands next; then it has been read.
    fn found(&mut self, expected: char) -> bool {
        self.next_byte();
        let rest = self.0.strip_prefix(expected);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, expected: char) -> Result<(), RpcError> {
        if self.found(expected) {
            Ok(())
        } else {
            Err(RpcError::parse_error(format_args!("'{expected}' expected")))
        }
    }

    /// The text of the value that stands next.
    fn value(&mut self) -> Result<&'a str, RpcError> {
        self.next_byte();
        let mut values = serde_json::Deserializer::from_str(self.0).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {
                let (value, rest) =
                    self.0.split_at_checked(values.byte_offset()).unwrap_or_default();
                self.0 = rest;
                Ok(value)
            }
            Some(Err(error)) => Err(RpcError::parse_error(error)),
            None => Err(RpcError::parse_error("a value is missing")),
        }
    }

    /// What stands between `open` and `close`, separated by commas: `most` items at most.
    fn list<T>(
        &mut self,
        [open, close]: [char; 2],
        most: usize,
        item: impl Fn(&mut Self) -> Result<T, RpcError>,
    ) -> Result<Vec<T>, RpcError> {
        self.expect(open)?;
        let mut items = Vec::new();
        if self.found(close) {
            return Ok(items);
        }
        loop {
            if items.len() == most {
                return Err(RpcError::invalid_request(format_args!(
                    "more than {most} items between '{open}' and '{close}'"
                )));
            }
            items.push(item(self)?);
            if self.found(close) {
                return Ok(items);
            }
            self.expect(',')?;
        }
    }

    fn elements(&mut self) -> Result<Vec<&'a str>, RpcError> {
        self.list(['[', ']'], BATCH, Walk::value)
    }

    fn members(&mut self) -> Result<Vec<(String, &'a str)>, RpcError> {
        self.list(['{', '}'], MEMBERS, |walk| {
            let key = read::<String>(walk.value()?).map_err(RpcError::parse_error)?;
            walk.expect(':')?;
            Ok((key, walk.value()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::Calling;
    use super::*;

    /// Answers with what it was called with, and remembers the order.
    #[derive(Default)]
    struct Echo(Mutex<Vec<String>>);

    impl Methods for Echo {
        fn call<'a>(&'a self, method: &'a str, params: Value) -> Calling<'a> {
            Box::pin(async move {
                self.0.lock().unwrap().push(String::from(method));
                match method {
                    "fail" => Err(RpcError::errno(19, "No such device")),
                    _ => Ok(json!([method, params])),
                }
            })
        }
    }

    struct Boundless;

    impl Room for Boundless {
        fn is_full(&self) -> bool {
            false
        }

        fn take(&mut self, _bytes: usize) -> bool {
            true
        }
    }

    fn answer(text: &str) -> String {
        let message = match Message::parse(text.as_bytes()) {
            Ok(message) => message,
            Err(error) => return error.code.to_string(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer =
            runtime.block_on(message.answer(&Echo::default(), &mut Boundless)).unwrap_or_default();
        String::from_utf8(answer).unwrap()
    }

    /// The code of the error and the id of the response.
    fn refusal(text: &str) -> (i64, Value) {
        let value: Value = serde_json::from_str(&answer(text)).unwrap();
        (value["error"]["code"].as_i64().unwrap(), value["id"].clone())
    }

    #[test]
    fn a_request_is_answered() {
        assert_eq!(
            answer(r#" {"jsonrpc": "2.0", "method": "m", "params": {"a": [1]}, "id": 7} "#),
            "{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":[\"m\",{\"a\":[1]}]}\n"
        );
        assert_eq!(
            answer(r#"{"id":"x","method":"fail"}"#),
            "{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"error\":{\"code\":-19,\"message\":\"No such device\"}}\n"
        );
    }

    #[test]
    fn no_parameters_are_null_however_they_are_said() {
        for params in ["", r#","params":null"#] {
            let text = answer(&format!(r#"{{"method":"m","id":1{params}}}"#));
            assert_eq!(text, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[\"m\",null]}\n");
        }
    }

    #[test]
    fn a_notification_is_carried_out_and_not_answered() {
        assert_eq!(answer(r#"{"method":"m"}"#), "");
        assert_eq!(answer(r#"[{"method":"m"},{"method":"fail"}]"#), "");
        assert_eq!(refusal(r#"{"method":1}"#), (-32600, Value::Null), "not even that");
    }

    #[test]
    fn what_is_no_request_is_refused_to_whoever_sent_it() {
        for (text, id) in [
            (r#"{"id":1}"#, json!(1)),
            (r#"{"id":1,"method":null}"#, json!(1)),
            (r#"{"id":"a","method":"m","jsonrpc":"1.0"}"#, json!("a")),
            (r#"{"id":"a","method":"m","jsonrpc":null}"#, json!("a")),
            (r#"{"id":1,"method":"m","params":3}"#, json!(1)),
            (r#"{"id":1,"method":"m","params":""}"#, json!(1)),
            (r#"{"id":1,"method":"m","param":{}}"#, json!(1)),
            (r#"{"id":1,"method":"m","method":"n"}"#, json!(1)),
            (r#"{"id":1,"method":"m","id":2}"#, json!(1)),
            (r#"{"id":true,"method":"m"}"#, Value::Null),
            (r#"{"id":{},"method":"m"}"#, Value::Null),
            (r#"{"id":"\ud800","method":"m"}"#, Value::Null),
            ("3", Value::Null),
            ("null", Value::Null),
            ("[]", Value::Null),
            ("{}", Value::Null),
        ] {
            assert_eq!(refusal(text), (-32600, id), "{text}");
        }
        assert!(answer(r#"{"id":1,"method":"m","param":{}}"#).contains("'param'"));
        for params in ["[1e999]", r#"{"a":1,"a":1}"#, r#"[{"a":{"b":1,"b":2}}]"#] {
            let text = format!(r#"{{"id":1,"method":"m","params":{params}}}"#);
            assert_eq!(refusal(&text), (-32602, json!(1)), "{params}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused_as_a_whole() {
        for text in [
            "",
            "{",
            "{]",
            "tru",
            "{}{}",
            "[{}",
            "[{},]",
            "[1 2]",
            r#"{"a" 1}"#,
            r#"{"a":1,}"#,
            "{1:1}",
            r#"{"id":01,"method":"m"}"#,
            "\u{feff}{}",
            r#"{"method":"m","params":[nul]}"#,
        ] {
            assert_eq!(answer(text), "-32700", "{text}");
        }
        assert_eq!(Message::parse(b"\"\xff\"").unwrap_err().code, -32700);
    }

    #[test]
    fn a_batch_is_answered_as_an_array_and_carried_out_in_order() {
        let text =
            answer(r#"[{"method":"a","id":1}, 5, {"method":"b"}, {"method":"fail","id":null}]"#);
        let answers: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answers.as_array().unwrap().len(), 3);
        assert_eq!(answers[0]["result"], json!(["a", null]));
        assert_eq!(
            (&answers[1]["id"], &answers[1]["error"]["code"]),
            (&json!(null), &json!(-32600))
        );
        assert_eq!((&answers[2]["id"], &answers[2]["error"]["code"]), (&json!(null), &json!(-19)));

        let echo = Echo::default();
        let names: Vec<String> = (0..500).map(|number| number.to_string()).collect();
        let batch: Vec<Value> = names.iter().map(|name| json!({ "method": name })).collect();
        let message = Message::parse(Value::from(batch).to_string().as_bytes()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(message.answer(&echo, &mut Boundless)), None);
        assert_eq!(*echo.0.lock().unwrap(), names);
    }

    #[test]
    fn batches_and_objects_are_bounded() {
        let batch = |count| format!("[{}]", vec![r#"{"method":"m"}"#; count].join(","));
        assert_eq!(answer(&batch(BATCH)), "");
        assert_eq!(answer(&batch(BATCH + 1)), "-32600");
        let members: Vec<String> = (0..=MEMBERS).map(|number| format!("\"{number}\":0")).collect();
        assert_eq!(answer(&format!("{{{}}}", members.join(","))), "-32600");
    }

    proptest! {
        #[test]
        fn an_id_comes_back_as_it_was_sent(id in prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>().prop_filter("JSON has no others", |number| number.is_finite())
                .prop_map(|number| format!("{number:e}")),
            "-?(0|[1-9][0-9]{0,40})([.][0-9]{1,20})?([eE][+-]?[0-9]{1,5})?",
            any::<String>().prop_map(|text| Value::from(text).to_string()),
            r#""([a-z ]|\\u00[4-6][0-9a-f]|\\["\\/bfnrt]|[äß€]){0,9}""#,
            Just(String::from("null")),
        ], before in any::<bool>(), blank in "[ \t\r\n]{0,2}") {
            let (id, method) = (format!("\"id\"{blank}:{blank}{id}{blank}"), "\"method\":\"m\"");
            let request = if before { format!("{{{blank}{id},{method}}}") } else { format!("{{{blank}{method},{blank}{id}}}") };
            let id = id.trim_start_matches("\"id\"").trim().trim_start_matches(':').trim();
            let response = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":[\"m\",null]}}");
            prop_assert_eq!(answer(&request), format!("{response}\n"));
            prop_assert_eq!(answer(&format!("[{request}]")), format!("[{response}]\n"));
        }

        #[test]
        fn any_text_is_read_as_the_parser_reads_it(
            text in r#"([\[\]{}",: 01.e-]|null|"id"|"method":"m"|"id":1|\[\]|\{\}|,){0,16}"#
        ) {
            let json = serde_json::from_str::<Value>(&text).is_ok();
            match Message::parse(text.as_bytes()) {
                Ok(_) => prop_assert!(json),
                Err(error) => prop_assert!(!json, "{error}"),
            }
        }
    }
}
