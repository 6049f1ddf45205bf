-- When are bikes wanted? Compile it, or preview it in an editor: an analysis builds nothing.
select
    cast(extract(hour from started_at) as integer) as hour_of_day,
    count(*) as rides,
    {{ count_where('is_round_trip') }} as round_trips
from {{ ref('fct_rides') }}
group by 1
order by 2 desc
