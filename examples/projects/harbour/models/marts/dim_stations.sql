select
    cast(station_id as varchar(8)) as station_id,
    cast(station_name as varchar(64)) as station_name,
    cast(district as varchar(32)) as district,
    cast(docks as integer) as docks,
    cast(opened_on as date) as opened_on
from {{ ref('stg_stations') }}
