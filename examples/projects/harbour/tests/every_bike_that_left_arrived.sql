-- Bikes move between stations; none comes from nowhere and none vanishes.
select sum(net_change) as missing
from {{ ref('fct_station_days') }}
having sum(net_change) <> 0
