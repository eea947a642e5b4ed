//! Commits and loads: versions, isolation of tokens, paging.

mod fixture;

use fixture::{commit, load, open, open_head, persist, place, record, row, write};
use keymeld_core::record::{Family, PersistError, Query, RecordKey, Token, Write};
use keymeld_store::limits::{BODY_BYTES_MAX, GROUP_TOKENS_MAX};
use keymeld_store::{Options, Store};

#[test]
fn rows_come_back_as_they_were_written_in_the_order_of_their_parts() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let bodies: [&[u8]; 4] = [b"", b"\0", &[0xff; 5_000], &[7; 300_000]];
    for family in [Family::Keygen, Family::Signing, Family::Enclave] {
        let key = RecordKey { family, id: [0xa5; 16] };
        assert!(load(&mut store, key).is_empty());
        let parts = [u32::MAX, 2, 0, 1];
        let writes = parts.iter().zip(bodies).map(|(&part, body)| write(key, part, 0, body)).collect();
        assert_eq!(commit(&mut store, writes), Ok(()));
        let expected = [
            row(key, 0, 1, bodies[2]),
            row(key, 1, 1, bodies[3]),
            row(key, 2, 1, bodies[1]),
            row(key, u32::MAX, 1, bodies[0]),
        ];
        assert_eq!(load(&mut store, key), expected);
        assert!(load(&mut store, RecordKey { family, id: [0xa6; 16] }).is_empty());
    }
    store.close().unwrap();
    assert_eq!(load(&mut open(&path), RecordKey { family: Family::Signing, id: [0xa5; 16] }).len(), 4);
}

#[test]
fn families_with_the_same_id_do_not_meet() {
    let (_folder, path) = place();
    let mut store = open(&path);
    for family in [Family::Keygen, Family::Signing, Family::Enclave] {
        assert_eq!(commit(&mut store, vec![write(record(family, 1), 0, 0, &[family as u8])]), Ok(()));
    }
    for family in [Family::Keygen, Family::Signing, Family::Enclave] {
        let key = record(family, 1);
        assert_eq!(load(&mut store, key), [row(key, 0, 1, &[family as u8])]);
    }
}

#[test]
fn a_write_takes_effect_only_on_the_version_that_it_names() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let key = record(Family::Keygen, 1);
    for wrong in [1, 2, i64::MAX as u64, u64::MAX - 1, u64::MAX] {
        let answer = commit(&mut store, vec![write(key, 0, wrong, b"absent")]);
        assert_eq!(answer, Err(PersistError::VersionMismatch));
    }
    for version in 0..5 {
        assert_eq!(commit(&mut store, vec![write(key, 0, version, &[version as u8])]), Ok(()));
        for wrong in [0, version, version + 2, i64::MAX as u64, u64::MAX] {
            let answer = commit(&mut store, vec![write(key, 0, wrong, b"wrong")]);
            assert_eq!(answer, Err(PersistError::VersionMismatch), "{wrong} on {}", version + 1);
        }
        assert_eq!(load(&mut store, key), [row(key, 0, version + 1, &[version as u8])]);
    }
    assert!(store.take_failure().is_none(), "a mismatch is no failure of the disk");
}

#[test]
fn writes_of_one_token_see_each_other() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let key = record(Family::Signing, 1);
    let writes = vec![write(key, 0, 0, b"a"), write(key, 0, 1, b"b"), write(key, 0, 2, b"c")];
    assert_eq!(commit(&mut store, writes), Ok(()));
    assert_eq!(load(&mut store, key), [row(key, 0, 3, b"c")]);
}

#[test]
fn a_token_is_kept_whole_or_not_at_all_and_its_neighbours_do_not_notice() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let old = record(Family::Keygen, 1_000);
    assert_eq!(commit(&mut store, vec![write(old, 0, 0, b"old")]), Ok(()));

    let enclave = record(Family::Enclave, 1);
    assert_eq!(commit(&mut store, vec![write(enclave, 0, 0, b"identity")]), Ok(()));
    let faults = [
        (write(old, 0, 0, b"exists"), PersistError::VersionMismatch),
        (write(old, 0, 5, b"version"), PersistError::VersionMismatch),
        (write(old, 9, 1, b"absent"), PersistError::VersionMismatch),
        (write(enclave, 0, 0, b"again"), PersistError::VersionMismatch),
        (write(enclave, 0, 1, b"replace"), PersistError::VersionMismatch),
        (write(old, 0, 1, &vec![0; BODY_BYTES_MAX + 1]), PersistError::Failed),
    ];
    let mut number = 0;
    for (fault, reason) in faults {
        for place_of_fault in 0..3 {
            number += 10;
            let bad = record(Family::Signing, number);
            let mut writes = vec![write(bad, 0, 0, b"new"), write(old, 0, 1, b"changed")];
            writes.insert(place_of_fault, fault.clone());
            let good = |offset| record(Family::Signing, number + offset);
            let batch = [
                persist(1, vec![write(good(1), 0, 0, b"good"), write(good(1), 1, 0, b"good")]),
                persist(2, writes),
                persist(3, vec![write(good(3), 0, 0, b"good")]),
            ];
            let answers = store.commit(&batch);
            assert_eq!(answers, [(Token(1), Ok(())), (Token(2), Err(reason)), (Token(3), Ok(()))]);
            assert_eq!(load(&mut store, good(1)).len(), 2);
            assert_eq!(load(&mut store, good(3)).len(), 1);
            assert!(load(&mut store, bad).is_empty());
            assert_eq!(load(&mut store, old), [row(old, 0, 1, b"old")]);
        }
    }
}

#[test]
fn a_batch_without_a_good_token_and_an_empty_batch_are_answered() {
    let (_folder, path) = place();
    let mut store = open(&path);
    assert!(store.commit(&[]).is_empty());
    assert_eq!(commit(&mut store, vec![]), Err(PersistError::Failed));
    let missing = write(record(Family::Keygen, 1), 0, 4, b"");
    let batch = [persist(1, vec![missing.clone()]), persist(2, vec![missing])];
    let mismatch = Err(PersistError::VersionMismatch);
    assert_eq!(store.commit(&batch), [(Token(1), mismatch), (Token(2), mismatch)]);
    assert_eq!(commit(&mut store, vec![open_head(record(Family::Keygen, 1), 0)]), Ok(()));
}

#[test]
fn a_batch_over_the_limit_of_one_transaction_is_kept_and_answered_in_order() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let count = 2 * GROUP_TOKENS_MAX as u64 + 1;
    let batch: Vec<_> =
        (0..count).map(|n| persist(n, vec![open_head(record(Family::Signing, n), 0)])).collect();
    let expected: Vec<_> = (0..count).map(|n| (Token(n), Ok(()))).collect();
    assert_eq!(store.commit(&batch), expected);
    let all = Query::Open { after: None, count_max: u32::MAX };
    assert_eq!(store.load(&all).unwrap().len() as u64, count);
}

#[test]
fn the_largest_body_fits_and_a_byte_more_is_refused() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let key = record(Family::Signing, 1);
    let body = vec![3; BODY_BYTES_MAX + 1];
    assert_eq!(commit(&mut store, vec![write(key, 0, 0, &body)]), Err(PersistError::Failed));
    assert_eq!(commit(&mut store, vec![write(key, 0, 0, &body[1..])]), Ok(()));
    assert_eq!(load(&mut store, key), [row(key, 0, 1, &body[1..])]);
}

#[test]
fn open_heads_are_paged_by_key_until_none_is_left() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let mut keys: Vec<RecordKey> =
        (0..40).map(|n| record(if n % 2 == 0 { Family::Signing } else { Family::Keygen }, n)).collect();
    keys.push(RecordKey { family: Family::Keygen, id: [0; 16] });
    keys.push(RecordKey { family: Family::Keygen, id: [0xff; 16] });
    keys.push(RecordKey { family: Family::Enclave, id: [0xff; 16] });
    let batch: Vec<_> = keys.iter().map(|&key| persist(0, vec![open_head(key, 0)])).collect();
    assert!(store.commit(&batch).iter().all(|(_, answer)| answer.is_ok()));
    keys.sort();

    for count_max in [1, 2, 7, 42, 43, 44, u32::MAX] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.load(&Query::Open { after, count_max }).unwrap();
            assert!(page.len() <= count_max as usize);
            assert!(page.iter().all(|row| row.key.part == 0 && row.version == 1 && row.body == b"head"));
            seen.extend(page.iter().map(|row| row.key.record));
            match page.last() {
                Some(last) => after = Some(last.key.record),
                None => break,
            }
        }
        assert_eq!(seen, keys, "pages of {count_max}");
    }
    assert!(store.load(&Query::Open { after: None, count_max: 0 }).unwrap().is_empty());
}

#[test]
fn only_part_0_opens_and_closes_a_record() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let key = record(Family::Signing, 1);
    let all = Query::Open { after: None, count_max: 10 };

    let open_tail = Write { open: true, ..write(key, 1, 0, b"approval") };
    assert_eq!(commit(&mut store, vec![open_tail.clone()]), Ok(()));
    assert!(store.load(&all).unwrap().is_empty());

    assert_eq!(commit(&mut store, vec![open_head(key, 0)]), Ok(()));
    assert_eq!(store.load(&all).unwrap(), [row(key, 0, 1, b"head")]);

    assert_eq!(commit(&mut store, vec![write(key, 1, 1, b"other")]), Ok(()));
    assert_eq!(store.load(&all).unwrap().len(), 1, "a part's flag does not close the record");

    assert_eq!(commit(&mut store, vec![write(key, 0, 1, b"ended")]), Ok(()));
    assert!(store.load(&all).unwrap().is_empty());
    assert_eq!(load(&mut store, key), [row(key, 0, 2, b"ended"), row(key, 1, 2, b"other")]);

    assert_eq!(commit(&mut store, vec![open_head(key, 2)]), Ok(()));
    assert_eq!(store.load(&all).unwrap(), [row(key, 0, 3, b"head")]);
}

#[test]
fn a_store_can_be_moved_to_the_thread_that_uses_it() {
    let (_folder, path) = place();
    let mut store = open(&path);
    let key = record(Family::Keygen, 1);
    let answer = std::thread::spawn(move || commit(&mut store, vec![open_head(key, 0)])).join().unwrap();
    assert_eq!(answer, Ok(()));
}

#[test]
fn a_read_only_store_reads_beside_the_writer_and_refuses_every_write() {
    let (_folder, path) = place();
    let mut writer = open(&path);
    let key = record(Family::Keygen, 1);
    assert_eq!(commit(&mut writer, vec![open_head(key, 0)]), Ok(()));

    let mut reader = Store::open(&path, &Options { read_only: true, ..Options::default() }).unwrap();
    assert_eq!(load(&mut reader, key), [row(key, 0, 1, b"head")]);
    for _ in 0..2 {
        let answers =
            reader.commit(&[persist(1, vec![open_head(key, 1)]), persist(2, vec![write(key, 1, 0, b"")])]);
        let refused = Err(PersistError::ReadOnly);
        assert_eq!(answers, [(Token(1), refused), (Token(2), refused)]);
        let failure = reader.take_failure().unwrap().to_string();
        assert!(failure.contains("readonly"), "{failure}");
    }
    assert_eq!(commit(&mut writer, vec![open_head(key, 1)]), Ok(()));
    assert_eq!(load(&mut reader, key), [row(key, 0, 2, b"head")]);
    reader.close().unwrap();
}
