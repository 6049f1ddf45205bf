-- depends_on: {{ ref('bikes') }}
select
    bike_id,
    bike_type,
    commissioned_on,
    status
from {{ source('operations', 'bikes') }}
