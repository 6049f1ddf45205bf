-- depends_on: {{ ref('stations') }}
select
    station_id,
    station_name,
    district,
    docks,
    latitude,
    longitude,
    opened_on
from {{ source('operations', 'stations') }}
