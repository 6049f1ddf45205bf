-- A bike that is out cannot be unlocked again before it is docked.
select
    earlier.bike_id,
    earlier.ride_id,
    later.ride_id as overlapping_ride_id
from {{ ref('fct_rides') }} as earlier
inner join {{ ref('fct_rides') }} as later
    on
        earlier.bike_id = later.bike_id
        and earlier.ride_id < later.ride_id
        and earlier.started_at < later.ended_at
        and later.started_at < earlier.ended_at
