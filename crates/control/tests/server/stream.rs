//! One connection, on a simulated wire and clock: time passes only when nothing else can happen.

use std::collections::BTreeSet;

use control::server::Limits;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::{Duration, Instant, sleep};

use crate::probe::{IDLE, connect, join, limits, request};

#[tokio::test(start_paused = true)]
async fn answers_come_as_they_are_ready() {
    let (probe, _server, mut client) = connect(limits(), 1 << 16);
    let text = request(1, "hold", 1) + &request(2, "hold", 2) + "\n\n" + &request(3, "echo", 9);
    client.writer.write_all(text.as_bytes()).await.unwrap();
    assert_eq!(client.answers.id().await, json!(3));
    probe.release(2);
    assert_eq!(client.answers.id().await, json!(2));
    probe.release(1);
    let answer = client.answers.next().await.unwrap();
    assert_eq!(answer, json!({ "jsonrpc": "2.0", "id": 1, "result": [1] }));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_answered_at_once_and_holds_up_nothing() {
    let (probe, _server, mut client) = connect(limits(), 1 << 16);
    let text = format!("[{},{}]", request(1, "hold", 1), request(2, "nonesuch", 1));
    client.writer.write_all(text.as_bytes()).await.unwrap();
    client.writer.write_all(request(3, "echo", 1).as_bytes()).await.unwrap();
    assert_eq!(client.answers.id().await, json!(3));
    probe.release(1);
    let answers = client.answers.next().await.unwrap();
    assert_eq!((&answers[0]["id"], &answers[1]["id"]), (&json!(1), &json!(2)));
    assert_eq!(answers[1]["error"], json!({ "code": -32601, "message": "Method not found" }));
}

#[tokio::test(start_paused = true)]
async fn who_has_nothing_more_to_say_is_still_answered() {
    let (probe, _server, mut client) = connect(limits(), 1 << 16);
    let text = request(1, "hold", 1) + &request(2, "echo", 0);
    client.writer.write_all(text.as_bytes()).await.unwrap();
    client.writer.shutdown().await.unwrap();
    assert_eq!(client.answers.id().await, json!(2));
    probe.release(1);
    assert_eq!(client.answers.id().await, json!(1));
    assert_eq!(client.answers.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn what_a_vanished_client_began_ends() {
    let (probe, server, mut client) = connect(limits(), 1 << 16);
    client.writer.write_all(request(1, "hold", 1).as_bytes()).await.unwrap();
    probe.begun(1).await;
    drop(client);
    sleep(10 * IDLE).await;
    assert_eq!(*probe.ended.borrow(), 0);
    probe.release(1);
    probe.ended(1).await;
    assert_eq!(server.stop().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_and_a_waiting_one_is_not() {
    let (probe, _server, mut client) = connect(limits(), 1 << 16);
    let start = Instant::now();
    sleep(IDLE / 2).await;
    client.writer.write_all(request(1, "hold", 1).as_bytes()).await.unwrap();
    sleep(10 * IDLE).await;
    probe.release(1);
    assert_eq!(client.answers.id().await, json!(1));
    assert_eq!(client.answers.next().await, None);
    let silence = start.elapsed().saturating_sub(IDLE / 2 + 10 * IDLE);
    assert!(silence >= IDLE && silence < IDLE + Duration::from_secs(1), "{silence:?}");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_in_drops_is_silence() {
    let (_probe, _server, mut client) = connect(limits(), 1 << 16);
    let start = Instant::now();
    let drip = async {
        while client.writer.write_all(b"[").await.is_ok() {
            sleep(IDLE / 20).await;
        }
    };
    tokio::select! {
        end = client.answers.next() => assert_eq!(end, None),
        () = drip => {}
    }
    assert!(start.elapsed() < 2 * IDLE);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_not_read_from() {
    let small = Limits { in_flight: 4, message: 1000, ..limits() };
    let (probe, _server, client) = connect(small, 256);
    let (mut answers, mut writer) = (client.answers, client.writer);
    let flood = tokio::spawn(async move {
        for id in 0..100 {
            writer.write_all(request(id, "big", 5000).as_bytes()).await.unwrap();
        }
        writer
    });
    sleep(IDLE / 2).await;
    assert_eq!(*probe.begun.borrow(), 4, "with four answers in the way, no fifth is asked for");
    let mut ids = BTreeSet::new();
    for _ in 0..100 {
        ids.insert(answers.id().await.as_u64().unwrap());
    }
    assert_eq!(ids.len(), 100);
    drop(flood.await.unwrap());
    assert_eq!(answers.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_takes_have_only_so_many_bytes() {
    let small = Limits { answers: 20_000, ..limits() };
    let (probe, _server, client) = connect(small, 256);
    let (mut answers, mut writer) = (client.answers, client.writer);
    let flood = tokio::spawn(async move {
        for id in 0..100 {
            writer.write_all(request(id, "big", 5000).as_bytes()).await.unwrap();
        }
        writer
    });
    sleep(IDLE / 2).await;
    // Two of them fill half of the room.
    assert_eq!(*probe.begun.borrow(), 2, "of a hundred that have been asked for");
    let mut ids = BTreeSet::new();
    for _ in 0..100 {
        let answer = answers.next().await.unwrap();
        assert!(answer["result"].is_string(), "{answer}");
        ids.insert(answer["id"].as_u64().unwrap());
    }
    assert_eq!(ids.len(), 100);
    drop(flood.await.unwrap());
    assert_eq!(answers.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_room_is_given_up_for_an_error() {
    let (probe, _server, mut client) = connect(Limits { answers: 20_000, ..limits() }, 1 << 16);
    // Small ones always have room, and one that is alone.
    for id in 0..10 {
        client.writer.write_all(request(id, "late", 5000).as_bytes()).await.unwrap();
    }
    client.writer.write_all(request(10, "hold", 7).as_bytes()).await.unwrap();
    probe.begun(11).await;
    probe.release(5000);
    probe.ended(10).await;
    probe.release(7);
    let (mut whole, mut refused) = (0, 0);
    for _ in 0..11 {
        let answer = client.answers.next().await.unwrap();
        if answer["id"] == 10 {
            assert_eq!(answer["result"], json!([7]));
        } else if answer["result"].is_string() {
            whole += 1;
        } else {
            refused += 1;
            assert_eq!(answer["error"]["code"], -16, "{answer}");
        }
    }
    assert_eq!(whole + refused, 10);
    assert!(whole >= 3 && refused > 0, "{whole} and {refused}");
    client.writer.write_all(request(11, "big", 50_000).as_bytes()).await.unwrap();
    assert!(client.answers.next().await.unwrap()["result"].is_string());

    let each = (0..10).map(|id| request(id, "big", 5000)).collect::<Vec<_>>().join(",");
    client.writer.write_all(format!("[{each}]").as_bytes()).await.unwrap();
    let answer = client.answers.next().await.unwrap();
    let codes: Vec<_> =
        answer.as_array().unwrap().iter().map(|it| it["error"]["code"].clone()).collect();
    assert_eq!(codes[..2], [json!(null), json!(null)]);
    assert_eq!(codes[2..], vec![json!(-16); 8]);
    assert_eq!(*probe.begun.borrow(), 14, "what is refused is not called");
}

#[tokio::test(start_paused = true)]
async fn who_never_reads_loses_the_connection() {
    let (probe, server, mut client) = connect(limits(), 256);
    client.writer.write_all(request(1, "big", 5000).as_bytes()).await.unwrap();
    probe.ended(1).await;
    let mut more = [0; 200].into_iter().cycle().map(|_| b' ');
    let start = Instant::now();
    while client.writer.write_u8(more.next().unwrap()).await.is_ok() {
        sleep(Duration::from_secs(1)).await;
        assert!(start.elapsed() < 2 * IDLE, "a stalled connection stays for good");
    }
    assert!(start.elapsed() + Duration::from_secs(2) >= IDLE);
    assert_eq!(server.stop().await, 0);
}

#[tokio::test(start_paused = true)]
async fn large_messages_count_for_many() {
    let small = Limits { in_flight: 10, message: 1000, ..limits() };
    let (probe, _server, mut client) = connect(small, 1 << 16);
    for id in 0..10 {
        let text = request(id, "hold", 1) + &" ".repeat(30);
        let padded = text.replacen("[1]", &format!("[1{}]", " ".repeat(300)), 1);
        client.writer.write_all(padded.as_bytes()).await.unwrap();
    }
    sleep(IDLE).await;
    assert_eq!(*probe.begun.borrow(), 2, "four tenths each");
    probe.release(1);
    probe.ended(10).await;
}

#[tokio::test(start_paused = true)]
async fn garbage_is_answered_and_ends_the_connection() {
    for text in ["GET / HTTP/1.1\r\n\r\n", "{]", r#"{"id" 1}"#, "tru ", "\"\u{1}\"", "[1,2"] {
        let (_probe, _server, mut client) = connect(limits(), 1 << 16);
        client.writer.write_all(text.as_bytes()).await.unwrap();
        client.writer.write_all(request(1, "echo", 1).as_bytes()).await.unwrap();
        client.writer.shutdown().await.unwrap();
        assert_eq!(client.answers.told_off().await, -32700, "{text}");
    }
    // What came before it is answered first.
    let (probe, _server, mut client) = connect(limits(), 1 << 16);
    let text = request(1, "hold", 1) + "!";
    client.writer.write_all(text.as_bytes()).await.unwrap();
    let refused = client.answers.next().await.unwrap();
    assert_eq!(refused["error"]["code"], json!(-32700));
    probe.release(1);
    assert_eq!(client.answers.id().await, json!(1));
    assert_eq!(client.answers.next().await, None);
}

/// Closing at once could cost the client the reason: the kernel resets what closes on bytes that were not read.
#[tokio::test(start_paused = true)]
async fn who_was_told_off_may_finish_its_sentence() {
    let (_probe, server, mut client) = connect(limits(), 64);
    client.writer.write_all(b"!").await.unwrap();
    assert_eq!(client.answers.told_off().await, -32700);
    client.writer.write_all(&[b'!'; 10_000]).await.unwrap();
    drop(client);
    assert_eq!(server.stop().await, 0);
}

/// A client that writes on without listening gets its answer and is let go.
#[tokio::test(start_paused = true)]
async fn endless_garbage_is_not_listened_to_for_long() {
    let (_probe, server, client) = connect(limits(), 64);
    let (mut answers, mut writer) = (client.answers, client.writer);
    let flood = tokio::spawn(async move {
        while writer.write_all(b"!!!!!!!!").await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(answers.told_off().await, -32700);
    flood.await.unwrap();
    assert_eq!(server.stop().await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_json_but_no_request_does_not_end_the_connection() {
    let (_probe, _server, mut client) = connect(limits(), 1 << 16);
    client.writer.write_all(b"7 [] {} {\"id\":[]}").await.unwrap();
    for _ in 0..4 {
        assert_eq!(client.answers.next().await.unwrap()["error"]["code"], json!(-32600));
    }
    client.writer.write_all(request(1, "echo", 1).as_bytes()).await.unwrap();
    assert_eq!(client.answers.id().await, json!(1));
}

#[tokio::test(start_paused = true)]
async fn huge_and_deep_messages_are_refused() {
    for text in ["[".repeat(65), format!("[\"{}", "x".repeat(1 << 20)), "1".repeat((1 << 20) + 1)] {
        let (_probe, _server, mut client) = connect(limits(), 1 << 21);
        client.writer.write_all(text.as_bytes()).await.unwrap();
        assert_eq!(client.answers.told_off().await, -32700);
    }
    let (_probe, _server, mut client) = connect(limits(), 1 << 21);
    let frame = r#"{"id":1,"method":"echo","params":[""]}"#.len();
    let text = "x".repeat((1 << 20) - frame);
    let largest = format!(r#"{{"id":1,"method":"echo","params":["{text}"]}}"#);
    client.writer.write_all(largest.as_bytes()).await.unwrap();
    assert_eq!(client.answers.next().await.unwrap()["result"], json!([text]));
}

#[tokio::test(start_paused = true)]
async fn stopping_lets_answers_leave_and_takes_nothing_new() {
    let (probe, server, mut client) = connect(limits(), 1 << 16);
    client.writer.write_all(request(1, "hold", 1).as_bytes()).await.unwrap();
    probe.begun(1).await;
    let stopping = tokio::spawn(server.stop());
    sleep(Duration::from_secs(1)).await;
    client.writer.write_all(request(2, "echo", 1).as_bytes()).await.unwrap();
    assert!(!stopping.is_finished());
    probe.release(1);
    assert_eq!(client.answers.id().await, json!(1));
    assert_eq!(client.answers.next().await, None);
    assert_eq!(stopping.await.unwrap(), 0);
    assert_eq!(*probe.begun.borrow(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hung_method_holds_up_no_stop_for_good() {
    let (probe, server, mut client) = connect(limits(), 1 << 16);
    client.writer.write_all(request(1, "hold", 1).as_bytes()).await.unwrap();
    probe.begun(1).await;
    let start = Instant::now();
    assert_eq!(server.stop().await, 2, "the call and its connection");
    assert!(start.elapsed() < Duration::from_secs(6));
}

#[tokio::test(start_paused = true)]
async fn an_id_comes_back_as_it_was_sent_and_null_parameters_are_none() {
    let (_probe, _server, mut client) = connect(limits(), 1 << 16);
    for id in ["0", "-1", "1.0", "2e3", "18446744073709551616", "\"\"", "\"a\\u0022b\"", "null"] {
        let text = format!(r#"{{"method":"echo","params":null,"id":{id}}}"#);
        client.writer.write_all(text.as_bytes()).await.unwrap();
        let expected = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":null}}\n");
        assert_eq!(client.answers.line().await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_carried_out_in_its_order() {
    let (probe, _server, mut client) = connect(limits(), 1 << 16);
    let requests: Vec<String> = (1..=5).map(|id| request(id, "hold", id)).collect();
    client.writer.write_all(format!("[{}]", requests.join(",")).as_bytes()).await.unwrap();
    for number in (1..=5).rev() {
        probe.release(number);
    }
    let answers = client.answers.next().await.unwrap();
    let ids: Vec<_> = answers.as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    assert_eq!(probe.order(), [1, 2, 3, 4, 5]);
    // Notifications leave nothing to be said, not even an empty array.
    let text = r#"[{"method":"echo"},{"method":"nonesuch"}]"#.to_owned() + &request(6, "echo", 1);
    client.writer.write_all(text.as_bytes()).await.unwrap();
    assert_eq!(client.answers.id().await, json!(6));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_are_answered_in_the_reverse_of_their_order() {
    let (probe, _server, mut client) = connect(limits(), 1 << 20);
    let text: String = (0..1024).map(|id| request(id, "hold", id)).collect();
    client.writer.write_all(text.as_bytes()).await.unwrap();
    probe.begun(1024).await;
    for id in (0..1024).rev() {
        probe.release(id);
        assert_eq!(client.answers.id().await, json!(id));
    }
}

/// While as many as may be are under way, the next waits; it is begun when one is answered.
#[tokio::test(start_paused = true)]
async fn calls_under_way_are_bounded() {
    let (probe, _server, mut client) =
        connect(Limits { in_flight: 3, message: 3000, ..limits() }, 1 << 16);
    let text: String = (1..=5).map(|id| request(id, "hold", id)).collect();
    client.writer.write_all(text.as_bytes()).await.unwrap();
    sleep(IDLE / 2).await;
    assert_eq!(probe.order(), [1, 2, 3]);
    probe.release(2);
    assert_eq!(client.answers.id().await, json!(2));
    probe.begun(4).await;
    sleep(IDLE / 2).await;
    assert_eq!(probe.order(), [1, 2, 3, 4]);
}

/// On all connections together, and of that method only.
#[tokio::test(start_paused = true)]
async fn calls_of_a_hung_method_are_bounded_even_when_their_clients_are_gone() {
    let (probe, server, client) = connect(Limits { alike: 3, ..limits() }, 1 << 16);
    drop(client);
    for number in 1..=3 {
        let mut client = join(&server, 1 << 16);
        client.writer.write_all(request(1, "hold", number).as_bytes()).await.unwrap();
        probe.begun(number).await;
    }
    let mut client = join(&server, 1 << 16);
    let text = request(1, "hold", 4) + &request(2, "echo", 1);
    client.writer.write_all(text.as_bytes()).await.unwrap();
    let refused = client.answers.next().await.unwrap();
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(1), &json!(-16)));
    assert_eq!(client.answers.id().await, json!(2));
    probe.release(1);
    probe.ended(2).await;
    probe.release(4);
    client.writer.write_all(request(3, "hold", 4).as_bytes()).await.unwrap();
    assert!(client.answers.next().await.unwrap()["result"].is_array());
}
