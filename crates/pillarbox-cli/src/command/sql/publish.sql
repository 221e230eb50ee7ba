select pillarbox.publish(
    event_type => $1::text,
    event_context => $2::text::json,
    environment => $3::text,
    metadata_version => $4::bigint
)
